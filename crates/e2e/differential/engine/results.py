"""Flows whose results are kept. Each has its twin in crates/e2e/src/scenarios/results.rs."""

from datetime import timedelta

from prefect import flow, get_run_logger, task


@task(persist_result=True, result_serializer="json")
def measure():
    return {"size": 3}


@flow(name="persisted-results", persist_result=True, result_serializer="json")
def persisted_results():
    return measure()


@task(
    persist_result=True,
    result_serializer="json",
    cache_key_fn=lambda context, parameters: "digest-of-" + parameters["name"],
    cache_expiration=timedelta(hours=1),
)
def digest(name):
    get_run_logger().info("at work")
    return len(name)


@flow(name="cached-task")
def cached_task():
    digest("a")
    digest("a")
    digest("bc")
