//! The client against a small server that answers as told and records what came.

#![expect(clippy::unwrap_used, reason = "in a test, whatever is not there ends it")]

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use futures_util::{SinkExt as _, StreamExt as _};
use jiff::Timestamp;
use prefect_api::event::{Event, Resource};
use prefect_api::id::FlowRunId;
use prefect_api::state::{NewState, StateType};
use prefect_client::settings::Inputs;
use prefect_client::socket::EventSender;
use prefect_client::{Client, Settings};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_tungstenite::tungstenite::Message;

type Recorded = (Method, String, HeaderMap, Value);
type Answer = (u16, Vec<(&'static str, &'static str)>, Value);

/// Answers `(status, headers, body)` in turn; a CSRF token is given when `csrf` is set.
#[derive(Clone, Default)]
struct Script {
    answers: Arc<Mutex<VecDeque<Answer>>>,
    seen: Arc<Mutex<Vec<Recorded>>>,
    csrf: Option<&'static str>,
    /// What the server says to whoever asks for a token, instead.
    csrf_refusal: Option<u16>,
}

async fn answer(
    State(script): State<Script>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let path = uri.path().to_owned();
    script.seen.lock().unwrap().push((method, path.clone(), headers, body));
    if let Some(status) = script.csrf_refusal.filter(|_| path.ends_with("/csrf-token")) {
        return StatusCode::from_u16(status).unwrap().into_response();
    }
    if path.ends_with("/csrf-token") {
        return match script.csrf {
            Some(token) => {
                let hour = Timestamp::now() + Duration::from_hours(1);
                axum::Json(json!({"token": token, "client": "c", "expiration": hour})).into_response()
            }
            None => (StatusCode::UNPROCESSABLE_ENTITY, "{\"detail\": \"CSRF protection is disabled.\"}")
                .into_response(),
        };
    }
    let next = script.answers.lock().unwrap().pop_front();
    let (status, headers, body) = next.unwrap_or((200, vec![], json!({})));
    let mut response = (StatusCode::from_u16(status).unwrap(), body.to_string()).into_response();
    for (name, value) in headers {
        response.headers_mut().insert(name, value.parse().unwrap());
    }
    response
}

async fn serve(script: Script) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/api", listener.local_addr().unwrap());
    let router = Router::new().fallback(answer).with_state(script);
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    url
}

fn client(url: &str, more: &[(&str, &str)]) -> Client {
    let mut environment: BTreeMap<String, String> =
        more.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
    environment.insert("PREFECT_API_URL".to_owned(), url.to_owned());
    let inputs = Inputs { environment, directory: PathBuf::from("/nonexistent") };
    Client::new(&Settings::resolve(&inputs).unwrap()).unwrap()
}

fn soon(status: u16) -> Answer {
    (status, vec![("retry-after", "0.01")], json!({"exception_message": "Service Unavailable"}))
}

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

/// A server of `/events/in` that drops the first socket after two events, then behaves.
async fn events_in(listener: TcpListener, received: Arc<Mutex<Vec<Value>>>) {
    for attempt in 0.. {
        let (stream, _) = listener.accept().await.unwrap();
        #[expect(clippy::result_large_err, reason = "the library's signature")]
        let accept = tokio_tungstenite::accept_hdr_async(
            stream,
            |request: &_, mut response: tokio_tungstenite::tungstenite::handshake::server::Response| {
                let request: &tokio_tungstenite::tungstenite::handshake::server::Request = request;
                assert_eq!(request.headers().get("sec-websocket-protocol").unwrap(), "prefect");
                response.headers_mut().insert("sec-websocket-protocol", "prefect".parse().unwrap());
                Ok(response)
            },
        );
        let mut socket = accept.await.unwrap();
        let auth = socket.next().await.unwrap().unwrap();
        assert_eq!(
            serde_json::from_str::<Value>(auth.to_text().unwrap()).unwrap(),
            json!({"type": "auth", "token": null})
        );
        socket.send(Message::text("{\"type\": \"auth_success\"}")).await.unwrap();
        let mut events = 0;
        while let Some(Ok(message)) = socket.next().await {
            if let Message::Text(text) = message {
                events += 1;
                received.lock().unwrap().push(serde_json::from_str(&text).unwrap());
            }
            if attempt == 0 && events == 2 {
                break;
            }
        }
    }
}

#[tokio::test]
async fn events_survive_a_dropped_socket_in_order() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/api", listener.local_addr().unwrap());
    let received = Arc::new(Mutex::new(Vec::new()));
    tokio::spawn(events_in(listener, Arc::clone(&received)));
    let sender = EventSender::spawn(client(&url, &[]));
    for number in 0..5 {
        let resource = Resource::of("flow-run", "x");
        sender.send(Event::new(format!("test.{number}"), Timestamp::now(), resource)).await;
    }
    sender.drain(Duration::from_secs(20)).await.unwrap();
    let received = received.lock().unwrap();
    let names: Vec<_> = received.iter().map(|event| event["event"].as_str().unwrap()).collect();
    // What was unconfirmed came again; ids make that harmless.
    assert_eq!(names, ["test.0", "test.1", "test.0", "test.1", "test.2", "test.3", "test.4"]);
    assert_eq!(received[0]["id"], received[2]["id"]);
}

/// A listener that takes connections and never says anything on those for WebSockets; REST is answered.
async fn swallowing(script: Script) -> (String, Arc<Mutex<u32>>) {
    let rest = serve(script).await;
    let rest = rest.trim_start_matches("http://").trim_end_matches("/api").to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/api", listener.local_addr().unwrap());
    let swallowed = Arc::new(Mutex::new(0));
    let count = Arc::clone(&swallowed);
    tokio::spawn(async move {
        loop {
            let (mut inbound, _) = listener.accept().await.unwrap();
            let mut start = [0; 8];
            inbound.peek(&mut start).await.unwrap();
            if start.starts_with(b"GET /api") {
                *count.lock().unwrap() += 1;
                // Kept open for as long as the test runs.
                tokio::spawn(async move {
                    let _kept = inbound;
                    std::future::pending::<()>().await;
                });
                continue;
            }
            let mut outbound = tokio::net::TcpStream::connect(&rest).await.unwrap();
            tokio::spawn(async move {
                drop(tokio::io::copy_bidirectional(&mut inbound, &mut outbound).await);
            });
        }
    });
    (url, swallowed)
}

#[tokio::test]
async fn events_go_over_rest_and_stay_there_where_sockets_are_swallowed() {
    let script = Script::default();
    script.answers.lock().unwrap().extend((0..3).map(|_| (204, vec![], json!(null))));
    let (url, swallowed) = swallowing(script.clone()).await;
    let csrf = ("PREFECT_CLIENT_CSRF_SUPPORT_ENABLED", "false");
    let sender = EventSender::spawn(client(&url, &[csrf]));
    for number in 0..3 {
        let resource = Resource::of("flow-run", "x");
        sender.send(Event::new(format!("test.{number}"), Timestamp::now(), resource)).await;
        sender.drain(Duration::from_secs(20)).await.unwrap();
    }
    let seen = script.seen.lock().unwrap();
    let sent: Vec<_> = seen.iter().map(|call| call.3[0]["event"].as_str().unwrap()).collect();
    assert_eq!(sent, ["test.0", "test.1", "test.2"]);
    assert_eq!(*swallowed.lock().unwrap(), 1, "one time-out is enough to know");
}

#[tokio::test]
async fn one_refusal_of_a_socket_is_enough_to_send_events_over_rest() {
    for status in [403, 404, 502] {
        let script = Script::default();
        script.answers.lock().unwrap().extend([(status, vec![], json!({})), (204, vec![], json!(null))]);
        let csrf = ("PREFECT_CLIENT_CSRF_SUPPORT_ENABLED", "false");
        let sender = EventSender::spawn(client(&serve(script.clone()).await, &[csrf]));
        sender.send(Event::new("test", Timestamp::now(), Resource::of("flow-run", "x"))).await;
        sender.drain(Duration::from_secs(20)).await.unwrap();
        let seen = script.seen.lock().unwrap();
        let paths: Vec<_> = seen.iter().map(|call| call.1.as_str()).collect();
        assert_eq!(paths, ["/api/events/in", "/api/events"], "{status}");
    }
}

/// A proxy that opens tunnels for whoever brings the password; the targets asked for, in order.
async fn tunnels() -> (String, Arc<Mutex<Vec<String>>>) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let targets = Arc::clone(&asked);
    tokio::spawn(async move {
        loop {
            let (mut inbound, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(inbound.read_u8().await.unwrap());
            }
            let head = String::from_utf8(head).unwrap();
            let target = head.split(' ').nth(1).unwrap().to_owned();
            targets.lock().unwrap().push(target.clone());
            let known = head.to_ascii_lowercase().contains("proxy-authorization: basic dtpw");
            if !head.starts_with("CONNECT") || !known {
                let refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n";
                inbound.write_all(refusal).await.unwrap();
                continue;
            }
            inbound.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            let mut outbound = tokio::net::TcpStream::connect(&target).await.unwrap();
            tokio::spawn(async move {
                drop(tokio::io::copy_bidirectional(&mut inbound, &mut outbound).await);
            });
        }
    });
    (address.to_string(), asked)
}

#[tokio::test]
async fn sockets_take_the_way_that_the_proxy_variables_name() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = listener.local_addr().unwrap().to_string();
    tokio::spawn(events_in(listener, Arc::default()));
    let (proxy, asked) = tunnels().await;
    for (variable, through) in [(("NO_PROXY", "127.0.0.1"), false), (("NO_PROXY", ""), true)] {
        let credentials = format!("http://u:p@{proxy}");
        let variables = [("HTTP_PROXY", credentials.as_str()), variable];
        let sender = EventSender::spawn(client(&format!("http://{target}/api"), &variables));
        sender.send(Event::new("test", Timestamp::now(), Resource::of("flow-run", "x"))).await;
        sender.drain(Duration::from_secs(20)).await.unwrap();
        assert_eq!(*asked.lock().unwrap() == [target.clone()], through);
    }
}

#[tokio::test]
async fn a_proxy_that_refuses_the_tunnel_is_named() {
    let (proxy, _) = tunnels().await;
    let refused = client("http://prefect.invalid/api", &[("HTTP_PROXY", &proxy)]);
    let hello = prefect_api::channel::Hello {
        consumer_id: uuid::Uuid::now_v7(),
        worker_name: "w".to_owned(),
        worker_type: "docker".to_owned(),
        heartbeat_interval_seconds: 30,
        supported_channel_versions: vec![],
        requested_capabilities: vec![],
        work_queue_names: vec![],
        create_pool_if_not_found: false,
        default_base_job_template: serde_json::from_value(json!({})).unwrap(),
    };
    let error = prefect_client::socket::Channel::connect(&refused, "pool", hello).await.err().unwrap();
    assert!(!error.is_transient());
    assert!(error.to_string().contains(&proxy) && error.to_string().contains("407"), "{error}");
}
