"""The flows that the engines are measured with, for Prefect's own: one that does nothing, and one of many tasks that do
nothing.
"""

import os
import resource

from prefect import flow, task


def cpu() -> float:
    """CPU seconds of this process, of the one that has started it, and of what they have waited for."""
    with open(f"/proc/{os.getppid()}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    parent = sum(int(field) for field in fields[11:15]) / os.sysconf("SC_CLK_TCK")
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return parent + sum(usage.ru_utime + usage.ru_stime for usage in usages)


@flow
def empty():
    print(f"CPU before the first line: {cpu()}", flush=True)


@task
def nothing(number):
    pass


@flow
def many(tasks: int):
    nothing.map(range(tasks)).result()
