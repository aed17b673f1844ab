"""Flows whose runs end, wait or start again in many ways. Each has its twin in crates/e2e/src/scenarios/runs.rs."""

import os
import time
from pathlib import Path

from prefect import flow, get_run_logger, task
from prefect.deployments import run_deployment as start_run
from prefect.flow_runs import pause_flow_run, suspend_flow_run
from prefect.input import RunInput
from prefect.runtime import flow_run


def mark():
    """Tells whoever drives this that the flow is at work."""
    Path(os.environ["SCENARIO_MARK"]).touch()


@flow(name="flow-failure")
def flow_failure():
    raise ValueError("boom")


@task
def step():
    return "done"


@flow(name="flow-retries", retries=1, retry_delay_seconds=1)
def flow_retries():
    step()
    if flow_run.run_count == 1:
        raise ValueError("boom")


@flow(name="ui-retry")
def ui_retry():
    step()
    if flow_run.run_count == 1:
        raise ValueError("boom")


@flow(name="grandchild")
def grandchild(number: int):
    step()


@flow(name="child", flow_run_name="child-of-{number}")
def child(number: int = 7):
    get_run_logger().info(f"child {number}")
    grandchild(number + 1)


@flow(name="subflows")
def subflows():
    child(1)
    child(2)


@flow(name="failing-child")
def failing_child():
    raise ValueError("boom")


@flow(name="subflow-failure")
def subflow_failure():
    try:
        failing_child()
    except ValueError:
        get_run_logger().warning("handled")


@flow(name="called")
def called(number: int = 7):
    get_run_logger().info(f"called {number}")


@flow(name="run-deployment")
def run_deployment():
    run = start_run(os.environ["SCENARIO_CALLED"], parameters={"number": 8}, tags=["by-us"])
    get_run_logger().info(run.state.name)


@flow(name="flow-timeout", timeout_seconds=1)
def flow_timeout():
    step()
    time.sleep(60)


@flow(name="endless")
def endless():
    step()
    mark()
    time.sleep(600)


@task
def endless_step():
    mark()
    time.sleep(600)


@flow(name="endless-task")
def endless_task():
    endless_step()


@flow(name="pause")
def pause():
    step()
    pause_flow_run(timeout=120, poll_interval=1)
    step()


class Approval(RunInput):
    text: str
    number: int = 2


@flow(name="pause-for-input")
def pause_for_input():
    approval = pause_flow_run(wait_for_input=Approval, timeout=120, poll_interval=1)
    get_run_logger().info(f"{approval.text} {approval.number}")


@task(retries=1, retry_delay_seconds=600)
def tried_much_later():
    mark()
    raise ValueError("boom")


@flow(name="endless-retry")
def endless_retry():
    tried_much_later()


@flow(name="suspend")
def suspend():
    step()
    suspend_flow_run(timeout=120)
    step()


def tell(told, run, state):
    get_run_logger().info(f"told of {state.name}")


def tell_too(told, run, state):
    raise ValueError("no hook")


@task(on_completion=[tell], on_failure=[tell], on_running=[tell])
def hooked(fails):
    if fails:
        raise ValueError("boom")


@flow(name="hooks", on_running=[tell], on_completion=[tell_too, tell], on_failure=[tell], on_cancellation=[tell])
def hooks(fails: bool = False):
    hooked(fails)
