"""Flows of tasks. Each has its twin in crates/e2e/src/scenarios/tasks.rs."""

import time
from typing import Optional

from prefect import flow, get_run_logger, task


@task
def compose(name):
    return f"hello {name}"


@flow(name="plain")
def plain():
    get_run_logger().info(compose("you"))


@flow(name="parameters", description="Takes parameters.", flow_run_name="parameters-{text}", version="7")
def parameters(text: str, number: int = 3, flag: Optional[bool] = None, sizes: list[int] = [1, 2]):
    get_run_logger().info(f"{text} {number} {sizes[-1]}")


@task(name="one", tags=["first", "second"])
def one():
    time.sleep(0.5)
    return 1


@task(name="two", task_run_name="the-second")
def two():
    return 2


@flow(name="concurrent")
def concurrent():
    futures = [one.submit(), two.submit()]
    get_run_logger().info(str(sum(future.result() for future in futures)))


@task
def square(number):
    return number * number


@flow(name="mapped")
def mapped(count: int = 5):
    squares = square.map(range(count)).result()
    get_run_logger().info(str(sum(squares)))


@task
def source():
    return [1]


@task
def middle(items):
    return items + [2]


@task
def late():
    return [3]


@task
def sink(left, right):
    return left + right


@flow(name="dependencies")
def dependencies():
    first = source.submit()
    second = middle.submit(first)
    third = late.submit(wait_for=[second])
    get_run_logger().info(str(len(sink.submit(second, third).result())))


@task
def inner():
    get_run_logger().info("inside")


@task
def outer():
    inner()


@flow(name="nested-tasks")
def nested_tasks():
    outer()


attempts = {"unsteady": 0}


@task(retries=2)
def unsteady():
    attempts["unsteady"] += 1
    if attempts["unsteady"] < 3:
        raise ValueError("boom")


@flow(name="task-retries")
def task_retries():
    unsteady()


@task(retries=1, retry_delay_seconds=1)
def hopeless():
    raise ValueError("boom")


@flow(name="task-retries-delayed")
def task_retries_delayed():
    hopeless(return_state=True)


@task
def failing():
    raise ValueError("boom")


@flow(name="task-failure")
def task_failure():
    failing()


@flow(name="task-failure-handled")
def task_failure_handled():
    try:
        failing()
    except ValueError:
        get_run_logger().warning("handled")


@task
def dependent(value):
    return value


@flow(name="not-ready")
def not_ready():
    failed = failing.submit()
    state = dependent.submit(failed, return_state=True)
    get_run_logger().info(state.name)


@task(timeout_seconds=0.5)
def sluggish():
    time.sleep(30)


@flow(name="task-timeout")
def task_timeout():
    sluggish(return_state=True)
