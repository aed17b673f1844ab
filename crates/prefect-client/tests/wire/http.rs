//! Calls, their retries and their credentials.

use std::sync::{Arc, Mutex};

use jiff::Timestamp;
use prefect_api::id::FlowRunId;
use prefect_api::state::{NewState, StateType};
use serde_json::json;
use tokio::net::TcpListener;

use crate::server::{Script, client, serve, soon};

#[tokio::test]
async fn a_busy_server_is_asked_again_with_the_same_transition_id() {
    let state = json!({"id": FlowRunId::generate(), "type": "PENDING", "timestamp": Timestamp::now()});
    let script = Script::default();
    let accept = json!({"status": "ACCEPT", "state": state, "details": {"type": "accept_details"}});
    script.answers.lock().unwrap().extend([soon(503), soon(429), (201, vec![], accept)]);
    let client = client(&serve(script.clone()).await, &[]);
    let proposal = NewState::new(StateType::Pending);
    client.set_flow_run_state(FlowRunId::generate(), &proposal, false).await.unwrap();
    let seen = script.seen.lock().unwrap();
    let ids: Vec<_> = seen
        .iter()
        .filter(|call| call.1.ends_with("set_state"))
        .map(|call| &call.3["state"]["state_details"])
        .collect();
    assert_eq!(ids.len(), 3);
    assert!(ids.iter().all(|&id| id == ids[0] && !id["transition_id"].is_null()));
    let agent = seen[0].2.get("user-agent").unwrap();
    assert_eq!(agent, "prefect/3.7.2 (API 0.8.4)");
    assert_eq!(seen[0].2.get("x-prefect-api-version").unwrap(), "0.8.4");
}

#[tokio::test]
async fn a_server_that_stays_busy_is_given_up_after_the_retries() {
    let script = Script::default();
    script.answers.lock().unwrap().extend((0..10).map(|_| soon(503)));
    let client = client(&serve(script.clone()).await, &[("PREFECT_CLIENT_MAX_RETRIES", "2")]);
    let error = client.server_version().await.unwrap_err();
    assert_eq!((error.status(), error.is_transient()), (Some(503), true));
    assert_eq!(script.seen.lock().unwrap().len(), 3);
}

#[tokio::test]
async fn an_observer_is_told_what_failed_and_not_what_need_not_be_there() {
    let script = Script::default();
    let missing = (404, vec![], json!({"detail": "not found"}));
    script.answers.lock().unwrap().extend([
        missing.clone(),
        missing,
        soon(503),
        soon(503),
        (200, vec![], json!({"odd": 1})),
        (200, vec![], json!("3.7.2")),
    ]);
    let told = Arc::new(Mutex::new(Vec::new()));
    let ears = Arc::clone(&told);
    let client = client(&serve(script).await, &[("PREFECT_CLIENT_MAX_RETRIES", "1")])
        .observed(move |error| ears.lock().unwrap().push(error.status()));
    assert!(client.read_work_pool("p").await.unwrap().is_none());
    client.health().await.unwrap_err();
    client.server_version().await.unwrap_err();
    client.server_version().await.unwrap_err();
    client.server_version().await.unwrap();
    assert_eq!(*told.lock().unwrap(), [Some(404), Some(503), None]);
}

#[tokio::test]
async fn a_server_tells_its_clock() {
    let script = Script::default();
    let date = vec![("date", "Wed, 25 Nov 2026 09:30:00 GMT")];
    script
        .answers
        .lock()
        .unwrap()
        .extend([(200, date, json!(true)), (200, vec![("date", "noon")], json!(true))]);
    let client = client(&serve(script).await, &[]);
    assert_eq!(client.clock().await.unwrap().unwrap().to_string(), "2026-11-25T09:30:00Z");
    assert_eq!(client.clock().await.unwrap(), None);
}

#[tokio::test]
async fn refusals_are_not_retried_and_say_what_to_do() {
    let script = Script::default();
    script.answers.lock().unwrap().push_back((401, vec![], json!({"exception_message": "Unauthorized"})));
    let client = client(&serve(script.clone()).await, &[("PREFECT_API_AUTH_STRING", "admin:hunter2")]);
    let error = client.server_version().await.unwrap_err();
    assert!(error.hint().unwrap().contains("PREFECT_API_AUTH_STRING"));
    assert!(!format!("{error:?} {client:?}").contains("hunter2"));
    let seen = script.seen.lock().unwrap();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].2.get("authorization").unwrap(), "Basic YWRtaW46aHVudGVyMg==");
}

#[tokio::test]
async fn an_address_where_nothing_listens_fails_at_once() {
    let unused = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let error = client(&format!("http://{unused}/api"), &[]).server_version().await.unwrap_err();
    assert!(error.to_string().contains(&unused.to_string()), "{error}");
    assert!(error.hint().unwrap().contains("running"));
}

/// Paths of the calls so far, below the API's root.
fn paths(script: &Script) -> Vec<String> {
    let seen = script.seen.lock().unwrap();
    seen.iter().map(|call| call.1.trim_start_matches("/api/").to_owned()).collect()
}

/// A server that refuses writes so often for their token or the lack of one.
fn refusing(refusals: &[&str]) -> Script {
    let script = Script { csrf: Some("t0ken"), ..Script::default() };
    let refusals = refusals.iter().map(|detail| (403, vec![("retry-after", "0")], json!({"detail": detail})));
    let flow = json!({"id": FlowRunId::generate(), "name": "f"});
    script.answers.lock().unwrap().extend(refusals.chain([(201, vec![], flow)]));
    script
}

#[tokio::test]
async fn a_server_that_wants_no_csrf_token_is_not_asked_for_one() {
    let script = refusing(&[]);
    client(&serve(script.clone()).await, &[]).create_flow("f").await.unwrap();
    assert_eq!(paths(&script), ["flows/"]);
}

#[tokio::test]
async fn a_write_that_lacks_a_csrf_token_is_sent_again_with_one() {
    let script = refusing(&["Missing CSRF token."]);
    // Not a failure that would count.
    let retries = ("PREFECT_CLIENT_MAX_RETRIES", "0");
    client(&serve(script.clone()).await, &[retries]).create_flow("f").await.unwrap();
    assert_eq!(paths(&script), ["flows/", "csrf-token", "flows/"]);
    assert_eq!(script.seen.lock().unwrap()[2].2.get("prefect-csrf-token").unwrap(), "t0ken");
}

#[tokio::test]
async fn a_csrf_token_that_is_refused_is_fetched_anew() {
    let script = refusing(&["Missing CSRF token.", "Invalid CSRF token or client identifier."]);
    client(&serve(script.clone()).await, &[]).create_flow("f").await.unwrap();
    assert_eq!(paths(&script), ["flows/", "csrf-token", "flows/", "csrf-token", "flows/"]);
}

#[tokio::test]
async fn a_server_that_gives_no_token_says_what_is_really_wrong() {
    let script = Script { csrf_refusal: Some(401), ..refusing(&["Missing CSRF token."]) };
    let error = client(&serve(script.clone()).await, &[]).create_flow("f").await.unwrap_err();
    assert_eq!(error.status(), Some(401), "not 403, which would hide the wrong password");
    assert_eq!(paths(&script), ["flows/", "csrf-token"]);
}

#[tokio::test]
async fn credentials_do_not_follow_a_redirect_to_another_server() {
    let elsewhere = Script::default();
    let url: &'static str = serve(elsewhere.clone()).await.leak();
    let script = Script::default();
    script.answers.lock().unwrap().extend([
        (307, vec![("location", url)], json!({})),
        (302, vec![("location", "/api/other")], json!({})),
        (307, vec![("location", "/api/flows")], json!({})),
        (200, vec![], json!({"id": FlowRunId::generate(), "name": "f"})),
    ]);
    let headers = ("PREFECT_CLIENT_CUSTOM_HEADERS", "{\"X-Token\": \"hunter2\"}");
    let client = client(&serve(script.clone()).await, &[headers]);
    for status in [307, 302] {
        let error = client.create_flow("f").await.unwrap_err();
        assert_eq!(error.status(), Some(status));
        assert!(error.hint().unwrap().contains("PREFECT_API_URL"));
    }
    client.create_flow("f").await.unwrap();
    assert!(elsewhere.seen.lock().unwrap().is_empty());
    let seen = script.seen.lock().unwrap();
    let (method, path, _, body) = seen.last().unwrap();
    assert_eq!((method.as_str(), path.as_str(), &body["name"]), ("POST", "/api/flows", &json!("f")));
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_asked_for_again() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/api", listener.local_addr().unwrap());
    tokio::spawn(async move {
        for body in ["\"3.", "\"3.7.2\""] {
            let (mut stream, _) = listener.accept().await.unwrap();
            assert_ne!(stream.read(&mut [0; 4096]).await.unwrap(), 0);
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 7\r\nconnection: close\r\n\r\n{body}");
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    assert_eq!(client(&url, &[]).server_version().await.unwrap(), "3.7.2");
}
