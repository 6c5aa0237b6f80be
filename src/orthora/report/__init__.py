"""What finished runs show, as a terminal table and as one self-contained HTML page."""

from orthora.report.page import page_of as page_of
from orthora.report.page import print_table as print_table
from orthora.report.page import write_report as write_report
from orthora.runs import load_runs as load_runs
