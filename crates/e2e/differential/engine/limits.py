"""Flows under concurrency limits. Each has its twin in crates/e2e/src/scenarios/limits.rs."""

import time

from prefect import flow, get_run_logger, task
from prefect.concurrency.sync import concurrency
from prefect.concurrency.sync import rate_limit as take_rate


@task(tags=["scarce"])
def scarce():
    time.sleep(0.5)


@flow(name="tag-limit")
def tag_limit():
    for future in [scarce.submit(), scarce.submit(), scarce.submit()]:
        future.result()


@task
def tape():
    with concurrency("tape-drives", occupy=1):
        time.sleep(0.5)


@flow(name="global-limit")
def global_limit():
    for future in [tape.submit(), tape.submit()]:
        future.result()


@flow(name="missing-limit")
def missing_limit():
    with concurrency("no-such-limit", occupy=1):
        get_run_logger().info("unlimited")


@flow(name="rate-limit")
def rate_limit():
    take_rate("catalogue")
    get_run_logger().info("let through")
