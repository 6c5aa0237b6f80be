"""Figures and tables of runs: table in, figure out; the only door to matplotlib.

Colour and marker say the method, line style says the setting, on every figure alike. Importing
the package does not import matplotlib.
"""

from orthora.figures.charts import CHARTS as CHARTS
from orthora.figures.charts import chart_html as chart_html
from orthora.figures.charts import curves as curves
from orthora.figures.charts import legend_html as legend_html
from orthora.figures.charts import points as points
from orthora.figures.charts import style_of as style_of
from orthora.figures.lines import running_mean as running_mean
from orthora.figures.render import swatch as swatch
from orthora.figures.style import DEFAULT_STYLE as DEFAULT_STYLE
from orthora.figures.style import METHOD_COLOURS as METHOD_COLOURS
from orthora.figures.style import RATE_LINES as RATE_LINES
from orthora.figures.style import Style as Style
from orthora.figures.svg import to_svg as to_svg
