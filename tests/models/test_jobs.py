"""Jobs on threads: each after those it waits for, and what is raised in one is raised in the caller."""

import threading
from functools import partial

import pytest
import torch

from ulmfit.models.jobs import Job, evenly, run_jobs, waves


def wavefront(done, layers, blocks):
    jobs = []
    for layer in range(layers):
        for block in range(blocks):
            here = layer * blocks + block
            after = [here - 1] * (block > 0) + [here - blocks] * (layer > 0)
            jobs.append(Job(partial(done.append, here), tuple(after), cost=1.0 + layer))
    return jobs


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_every_job_is_done_once_and_after_those_it_waits_for(threads, workers):
    done = []
    jobs = wavefront(done, layers=3, blocks=20)
    with threads(workers):
        run_jobs(jobs, workers=workers)
    assert sorted(done) == list(range(60))
    place = {number: when for when, number in enumerate(done)}
    assert all(place[earlier] < place[number] for number, job in enumerate(jobs) for earlier in job.after)


def test_independent_jobs_run_at_the_same_time(threads):
    together = threading.Barrier(2, timeout=60)
    with threads(2):
        run_jobs([Job(together.wait), Job(together.wait)], workers=2)


def test_one_thread_is_enough_where_pytorch_has_but_one(threads):
    seen = []
    with threads(1):
        run_jobs([Job(lambda: seen.append(threading.current_thread()))] * 3, workers=3)
    assert seen == [threading.current_thread()] * 3


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_job_raises_is_raised_here_and_what_waits_for_it_is_not_begun(threads, workers):
    done, before = [], threading.active_count()

    def fail():
        raise ValueError("job 0")

    with threads(2):
        with pytest.raises(ValueError, match="job 0"):
            run_jobs([Job(fail), Job(lambda: done.append(1), (0,)), Job(lambda: done.append(2), (1,))], workers=workers)
        assert torch.get_num_threads() == 2
    assert done == [] and threading.active_count() == before


def test_jobs_compute_without_gradients(threads):
    seen = []
    with threads(2):
        run_jobs([Job(lambda: seen.append(torch.is_grad_enabled()))] * 4, workers=2)
    assert seen == [False] * 4 and torch.is_grad_enabled()


@pytest.mark.parametrize(("total", "at_most", "times"), [(0, 3, 1), (1, 3, 2), (7, 3, 1), (9, 3, 2), (10, 100, 4)])
def test_even_parts_cover_everything_and_none_is_too_long(total, at_most, times):
    parts = evenly(total, at_most=at_most, times=times)
    assert [place for start, end in parts for place in range(start, end)] == list(range(total))
    assert all(0 < end - start <= at_most for start, end in parts)


def test_works_in_waves_wait_for_the_one_before_and_for_their_like_a_layer_before():
    layers = [[(str, float(number)) for number in range(3)] for _ in range(2)]
    assert [job.after for job in waves(layers)] == [(), (0,), (1,), (0,), (3, 1), (4, 2)]
    assert [job.after for job in waves(layers, alone=1)] == [(), (0,), (1,), (), (3, 1), (4, 2)]
    assert [job.cost for job in waves(layers)] == [0, 1, 2, 0, 1, 2]
