"""Runs a study: every cell once, whatever happens on the way."""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from orthora.store import write_json
from orthora.study.alike import unlike
from orthora.study.arms import check_claims
from orthora.study.folder import Work, check_needs, check_owner, opened, reuse, sources, works
from orthora.study.job import ENDING, LOG, Ending, ending_of
from orthora.study.places import Cluster, Local, Place, closing
from orthora.study.plan import plan
from orthora.study.spec import StudySpec
from orthora.study.view import View, states

_POLL = 0.2
"""Seconds between two looks at the processes."""


@dataclass(frozen=True)
class Outcome:
    """How a study stands after it was run.

    Attributes:
        finished: cells and base models that finished.
        failed: names of those that failed, with the reason.
        by_training: those among them that training itself ended: outcomes, not faults.
        unlike: what is not the same in all cells though their settings say so, a line each.
    """

    finished: int
    failed: dict[str, str]
    by_training: frozenset[str]
    unlike: tuple[str, ...] = ()


def run_study(
    spec: StudySpec,
    *,
    jobs: int = 0,
    ray: str | None = None,
    retry_failed: bool = False,
    limit: int = 0,
) -> Outcome:
    """Do all cells of a study that are not done: train, evaluate, keep how each ended.

    Cells that have ended are not touched; one that was cut short goes on from its checkpoint. A
    cell that fails is kept with its reason, and the others go on. The same call may be repeated
    after any interruption, with more or fewer processes, or on a cluster, and the results are the
    same bits (on one kind of machine).

    Args:
        spec: the study.
        jobs: cells at a time on this machine; 0 takes as many as its cores or GPUs allow.
        ray: address of a Ray cluster, instead of this machine.
        retry_failed: try cells again that failed, but for those that training itself ended.
        limit: cells and base models to do now, at most; 0 does all.

    A script that calls this needs ``if __name__ == "__main__"`` around the call, as everything does
    that starts processes by multiprocessing.

    Raises:
        ValueError: a bad study, a folder of another one, a missing model or data, a cluster that
            does not answer. Nothing that is done is lost.
    """
    if jobs < 0 or limit < 0:
        raise ValueError(f"jobs {jobs} and limit {limit} must be at least 0")
    cells = plan(spec, starting=True)
    check_claims(spec, cells)
    check_owner(spec)
    check_needs(spec, cells)
    sources(spec)
    with opened(spec):
        found = works(spec, cells)
        if taken := reuse(spec, found):
            print(f"{len(taken)} cells taken from {', '.join(spec.reuse)}", flush=True)
        todo = [work for work in found if not work.complete or (retry_failed and _again(work))]
        todo = todo[:limit] if limit else todo
        names = {work.job.name for work in todo}
        ended = states([work for work in found if work.job.name not in names])
        total = sum(ended.values()) + len(todo)
        if todo:
            place: Place = (
                Cluster(ray, spec.cpus, spec.gpus) if ray else Local(jobs, spec.cpus, spec.gpus)
            )
            with closing(place), View(total, place.jobs, ended) as view:
                _run_all(spec, todo, place, view)
    return _outcome(found)


def _outcome(found: Sequence[Work]) -> Outcome:
    """What there is of all cells, whether or not it came now."""
    ended = {work.job.name: work.ending for work in found if work.ending}
    return Outcome(
        sum(one.state == "finished" for one in ended.values()),
        {name: one.reason or "unknown" for name, one in ended.items() if one.state == "failed"},
        frozenset(n for n, one in ended.items() if one.by_training and not one.evaluating),
        tuple(unlike(found)),
    )


def _again(work: Work) -> bool:
    """Whether a failure may end otherwise next time."""
    ending = work.ending
    if ending is None or ending.state != "failed":
        return False
    return ending.evaluating or not ending.by_training


def _run_all(spec: StudySpec, todo: list[Work], place: Place, view: View) -> None:
    """Start what there is room for, until all have ended."""
    waiting, by_name = deque(todo), {work.job.name: work for work in todo}
    losses = dict.fromkeys(by_name, 0)
    while waiting or view.running:
        while waiting and place.room() > 0:
            work = waiting.popleft()
            if not losses[work.job.name]:
                (work.job.cell / ENDING).unlink(missing_ok=True)
            view.started(work)
            place.start(work.job)
        for name, lost in place.ended():
            work = by_name[name]
            work.ending = ending_of(work.job.cell)
            if work.ending is not None:
                view.finished(work)
                continue
            losses[name] += 1
            again = losses[name] <= spec.retries
            view.lost(work, lost or "no ending", again)
            if again:
                waiting.appendleft(work)
            else:
                work.ending = _give_up(work, f"{lost}, {losses[name]} times")
                view.finished(work)
        view.show()
        time.sleep(_POLL)


def _give_up(work: Work, why: str) -> Ending:
    """Write down that a cell failed because its processes were lost."""
    ending = Ending("failed", f"{why}; see {work.job.cell / LOG}")
    write_json(work.job.cell / ENDING, asdict(ending))
    return ending
