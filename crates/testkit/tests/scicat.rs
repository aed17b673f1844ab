//! The catalogue over HTTP: against recorded exchanges of a real one, and oddity by oddity.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use testkit::faults::Fault;
use testkit::scicat::{Options, SciCat};

const PID: &str = "20.500.12345/gold-0001";
const ENCODED: &str = "20.500.12345%2Fgold-0001";

struct Session {
    scicat: SciCat,
    client: Client,
    token: Option<String>,
}

impl Session {
    /// A catalogue with one dataset, and a valid token.
    async fn new() -> Self {
        let scicat = SciCat::start(Options::default()).await.unwrap();
        scicat.catalogue().create_dataset(PID);
        let mut session = Self { scicat, client: Client::new(), token: None };
        session.login().await;
        session
    }

    async fn login(&mut self) {
        let body = json!({"username": self.scicat.username(), "password": self.scicat.password()});
        let (status, reply) = self.send("POST", "/api/v3/auth/login", &body).await;
        assert_eq!(status, 201);
        self.token = Some(reply["access_token"].as_str().unwrap().to_owned());
    }

    /// Sends a request; an empty reply is `Null`.
    async fn send(&self, method: &str, path: &str, body: &Value) -> (StatusCode, Value) {
        let mut request = self.client.request(method.parse::<Method>().unwrap(), self.scicat.url() + path);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if !body.is_null() {
            request = request.json(body);
        }
        let reply = request.send().await.unwrap();
        let status = reply.status();
        let text = reply.text().await.unwrap();
        (status, if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() })
    }

    async fn get(&self, path: &str) -> (StatusCode, Value) {
        self.send("GET", path, &Value::Null).await
    }
}

fn datablock(archive_id: &str) -> Value {
    json!({
        "archiveId": archive_id, "size": 10, "packedSize": 2048, "version": "1.0", "chkAlg": "md5",
        "dataFileList": [{"path": "a", "size": 4, "time": "2026-01-01T00:00:00Z"},
                         {"path": "b", "size": 6, "time": "2026-01-01T00:00:00Z"}],
    })
}

/// Compares a reply with a recorded one; `<...>` in the record stands for anything of the same type.
fn difference(at: &str, recorded: &Value, replied: &Value) -> Option<String> {
    match (recorded, replied) {
        (Value::String(text), Value::String(_)) if text.starts_with('<') => None,
        (Value::Object(recorded), Value::Object(replied)) => {
            let extra = replied.keys().find(|name| !recorded.contains_key(*name));
            extra.map(|name| format!("{at}.{name} was not recorded")).or_else(|| {
                recorded.iter().find_map(|(name, value)| match replied.get(name) {
                    Some(reply) => difference(&format!("{at}.{name}"), value, reply),
                    None => Some(format!("{at}.{name} is missing")),
                })
            })
        }
        (Value::Array(recorded), Value::Array(replied)) if recorded.len() == replied.len() => {
            (0..).zip(recorded.iter().zip(replied)).find_map(|(index, (recorded, replied))| {
                difference(&format!("{at}[{index}]"), recorded, replied)
            })
        }
        _ => (recorded != replied).then(|| format!("{at}: recorded {recorded}, replied {replied}")),
    }
}

/// Puts real values where the record has placeholders.
fn filled(value: &Value) -> Value {
    let text = value.to_string().replace("\"<time>\"", "\"2026-01-02T03:04:05.000Z\"");
    serde_json::from_str(&text).unwrap()
}

#[tokio::test]
async fn replies_are_those_of_a_real_catalogue() {
    let record: Value = serde_json::from_str(include_str!("fixtures/scicat.json")).unwrap();
    let options = Options { username: "admin".to_owned(), ..Options::default() };
    let scicat = SciCat::start(options).await.unwrap();
    let catalogue = scicat.catalogue();
    catalogue.create_dataset(PID);
    let mut dataset = filled(&record["dataset"]);
    for counter in ["size", "numberOfFiles"] {
        dataset[counter] = json!(0);
    }
    catalogue.patch_dataset(PID, &dataset);
    for block in record["origdatablocks"].as_array().unwrap() {
        catalogue.add_origdatablock(PID, filled(&block["dataFileList"]).as_array().unwrap());
    }
    assert_eq!(difference("dataset", &record["dataset"], &catalogue.dataset(PID).unwrap()), None);
    let mut session = Session { scicat, client: Client::new(), token: None };
    let mut jobs = serde_json::Map::new();
    for exchange in record["exchanges"].as_array().unwrap() {
        let kind = exchange["scenario"].as_str().unwrap();
        let (method, path) = (exchange["method"].as_str().unwrap(), exchange["path"].as_str().unwrap());
        let (status, reply) = if path.ends_with("/auth/login") {
            let form = [("username", session.scicat.username()), ("password", session.scicat.password())];
            let reply = session.client.post(session.scicat.url() + path).form(&form).send().await.unwrap();
            (reply.status(), reply.json::<Value>().await.unwrap())
        } else {
            if !jobs.contains_key(kind) {
                let body = json!({"type": kind, "emailJobInitiator": "o@x.org",
                                  "datasetList": [{"pid": PID, "files": []}]});
                let (status, job) = session.send("POST", "/api/v3/jobs", &body).await;
                assert_eq!(status, 201);
                if kind == "archive" {
                    assert_eq!(difference("v3 job", &record["job"], &job), None);
                    let (_, mut v4) =
                        session.get(&format!("/api/v4/jobs/{}", job["id"].as_str().unwrap())).await;
                    // A site's own word.
                    v4["configVersion"] = record["job_v4"]["configVersion"].clone();
                    assert_eq!(difference("v4 job", &record["job_v4"], &v4), None);
                }
                jobs.insert(kind.to_owned(), job["id"].clone());
            }
            let path = path.replace("<job>", jobs[kind].as_str().unwrap());
            session.send(method, &path, &filled(&exchange["req"])).await
        };
        assert_eq!(status.as_u16(), exchange["status"], "{method} {path}: {reply}");
        if let Some(token) = reply.get("access_token") {
            session.token = Some(token.as_str().unwrap().to_owned());
        }
        assert_eq!(difference(&format!("{method} {path}"), &exchange["res"], &reply), None);
    }
    let (_, job) = session.get(&format!("/api/v3/jobs/{}", jobs["retrieve"].as_str().unwrap())).await;
    assert_eq!(job["jobStatusMessage"], "finishedSuccessful");
}

#[tokio::test]
async fn an_expired_token_is_forbidden_or_silently_anonymous() {
    let mut session = Session::new().await;
    let path = format!("/api/v3/datasets/{ENCODED}");
    assert_eq!(session.get("/api/v3/auth/whoami").await.1["username"], "archiver");
    session.scicat.catalogue().expire_tokens();
    let (status, body) = session.get(&path).await;
    assert_eq!((status.as_u16(), &body["message"]), (403, &json!("Forbidden resource")));
    assert_eq!(session.get("/api/v3/auth/whoami").await, (StatusCode::OK, Value::Null));
    session.login().await;
    assert_eq!(session.get(&path).await.0, 200);

    let wrong = json!({"username": "archiver", "password": "wrong"});
    let (status, body) = session.send("POST", "/api/v3/auth/login", &wrong).await;
    assert_eq!((status.as_u16(), body), (401, json!({"message": "Unauthorized", "statusCode": 401})));
}

#[tokio::test]
async fn an_unencoded_pid_misses_the_route() {
    let session = Session::new().await;
    let (status, body) = session.get(&format!("/api/v3/datasets/{PID}")).await;
    assert_eq!(
        (status.as_u16(), &body["message"]),
        (404, &json!(format!("Cannot GET /api/v3/datasets/{PID}")))
    );
    let (status, body) = session.get("/api/v3/datasets/20.500.12345%2Fother").await;
    assert_eq!((status.as_u16(), &body["message"]), (404, &json!("dataset: 20.500.12345/other not found")));
}

#[tokio::test]
async fn the_lifecycle_endpoint_merges_and_the_general_patch_resets() {
    let session = Session::new().await;
    let lifecycle = format!("/api/v3/datasets/{ENCODED}/datasetlifecycle");
    let change = json!({"archivable": false, "retrievable": true, "storageLocation": "L"});
    let (_, whole) = session.send("PATCH", &lifecycle, &change).await;
    assert_eq!((&whole["archivable"], &whole["isOnCentralDisk"]), (&json!(false), &json!(true)));
    let v4 = lifecycle.replace("v3", "v4");
    let (_, whole) = session.send("PATCH", &v4, &json!({"archiveStatusMessage": "started"})).await;
    assert_eq!((&whole["retrievable"], &whole["archiveStatusMessage"]), (&json!(true), &json!("started")));

    let body = json!({"datasetlifecycle": {"archiveStatusMessage": "x"}, "isPublished": true});
    let (_, dataset) = session.send("PATCH", &format!("/api/v3/datasets/{ENCODED}"), &body).await;
    let reset = &dataset["datasetlifecycle"];
    assert_eq!((&reset["archivable"], &reset["retrievable"]), (&json!(true), &json!(false)));
    assert_eq!(reset.get("storageLocation"), None);
    assert_ne!(reset["_id"], whole["_id"]);
    assert_eq!(dataset["isPublished"], true);

    for (body, message) in [
        (json!({}), json!("dataset lifecycle DTO must not be empty")),
        (json!({"foo": 1}), json!(["property foo should not exist"])),
        (json!({"archivable": "yes"}), json!(["archivable must be a boolean value"])),
        (json!({"publishedOn": "soon"}), json!(["publishedOn must be a valid ISO 8601 date string"])),
    ] {
        let (status, reply) = session.send("PATCH", &lifecycle, &body).await;
        assert_eq!((status.as_u16(), &reply["message"]), (400, &message));
    }
}

#[tokio::test]
async fn datablocks_count_and_their_archive_ids_are_unique() {
    let session = Session::new().await;
    let path = format!("/api/v3/datasets/{ENCODED}/datablocks");
    let counters = || {
        let dataset = session.scicat.catalogue().dataset(PID).unwrap();
        (dataset["packedSize"].as_i64().unwrap(), dataset["numberOfFilesArchived"].as_i64().unwrap())
    };
    let (status, first) = session.send("POST", &path, &datablock("one")).await;
    assert_eq!(status, 201);
    assert_eq!(session.send("POST", &path, &datablock("two")).await.0, 201);
    assert_eq!(counters(), (4096, 4));
    let again = session.send("POST", &path, &datablock("one")).await;
    assert_eq!(again, (StatusCode::INTERNAL_SERVER_ERROR, json!("Internal server error")));

    let one = format!("{path}/{}", first["id"].as_str().unwrap());
    assert_eq!(session.send("DELETE", &one, &Value::Null).await, (StatusCode::OK, Value::Null));
    assert_eq!(counters(), (2048, 2));
    assert_eq!(session.send("DELETE", &one, &Value::Null).await.0, 404);
    let all = session.send("DELETE", &path, &Value::Null).await;
    assert_eq!(all, (StatusCode::OK, json!({"count": 1})));
    assert_eq!(counters(), (0, 0));

    let mut wrong = datablock("three");
    wrong["size"] = json!("10");
    wrong["id"] = json!("mine");
    wrong["dataFileList"][1]["perm"] = json!(420);
    let (status, reply) = session.send("POST", &path, &wrong).await;
    let complaints = json!([
        "property id should not exist",
        "size must be an integer number",
        "dataFileList.1.perm must be a string"
    ]);
    assert_eq!((status.as_u16(), &reply["message"]), (400, &complaints));
}

#[tokio::test]
async fn a_body_above_the_limit_is_an_internal_error() {
    let session = Session::new().await;
    let mut block = datablock("big");
    block["version"] = json!("v".repeat(16 * 1024 * 1024));
    let (status, reply) =
        session.send("POST", &format!("/api/v3/datasets/{ENCODED}/datablocks"), &block).await;
    assert_eq!((status.as_u16(), reply), (500, json!("Internal server error")));
}

#[tokio::test]
async fn job_results_are_replaced_and_unknown_jobs_are_bad_requests() {
    let session = Session::new().await;
    let id = session.scicat.catalogue().create_job("archive", &[PID]);
    let (v3, v4) = (format!("/api/v3/jobs/{id}"), format!("/api/v4/jobs/{id}"));
    for result in [json!({"a": 1}), json!({"b": 2})] {
        let body = json!({"jobStatusMessage": "inProgress", "jobResultObject": result, "unknown": 1});
        let (status, job) = session.send("PATCH", &v3, &body).await;
        assert_eq!((status.as_u16(), &job["jobResultObject"]), (200, &result));
        assert_eq!(job["datasetList"], json!([{"pid": PID, "files": []}]));
    }
    let body = json!({"statusCode": "finished", "statusMessage": "done"});
    let (_, job) = session.send("PATCH", &v4, &body).await;
    assert_eq!((&job["jobResultObject"], &job["statusMessage"]), (&json!({"b": 2}), &json!("done")));
    assert_eq!(job["jobParams"]["datasetList"][0]["pid"], PID);
    let history = session.scicat.catalogue().job_history(&id);
    assert_eq!(history, ["jobSubmitted", "inProgress", "inProgress", "finished"]);

    let (status, reply) =
        session.send("PATCH", &v4, &json!({"statusCode": "x", "jobStatusMessage": "y"})).await;
    let complaints = json!(["property jobStatusMessage should not exist", "statusMessage must be a string"]);
    assert_eq!((status.as_u16(), &reply["message"]), (400, &complaints));
    for method in ["GET", "PATCH"] {
        let (status, reply) = session.send(method, "/api/v3/jobs/unknown", &json!({})).await;
        assert_eq!((status.as_u16(), reply), (400, json!({"status": 400, "message": "Invalid job id."})));
    }
    session.scicat.catalogue().delete_dataset(PID);
    let (status, reply) = session.send("PATCH", &v3, &json!({"jobStatusMessage": "x"})).await;
    assert_eq!(
        (status.as_u16(), &reply["message"]),
        (404, &json!(format!("Unable to get a dataset. ([{PID}])")))
    );
}

#[tokio::test]
async fn new_jobs_are_checked_against_their_datasets() {
    let session = Session::new().await;
    let file = json!({"path": "a", "size": 1, "time": "2026-01-01T00:00:00Z"});
    session.scicat.catalogue().add_origdatablock(PID, &[file]);
    let job = |list: Value| json!({"type": "retrieve", "datasetList": list, "unknown": "ignored"});
    let (status, _) = session.send("POST", "/api/v3/jobs", &job(json!([{"pid": PID, "files": ["a"]}]))).await;
    assert_eq!(status, 201);
    for (list, message) in [
        (json!([]), "List of passed datasets is empty."),
        (json!([{"pid": "x", "files": []}]), "Datasets with pid x do not exist."),
        (json!([{"pid": PID}]), "In datasetList each 'files' field should be an array."),
        (json!([{"pid": PID, "files": ["b"]}]), "At least one requested file could not be found."),
    ] {
        let (status, reply) = session.send("POST", "/api/v3/jobs", &job(list)).await;
        assert_eq!(
            (status.as_u16(), &reply["status"], &reply["message"]),
            (400, &json!(400), &json!(message))
        );
    }
    let v4 = json!({"type": "retrieve", "jobParams": {}, "datasetList": []});
    let (status, reply) = session.send("POST", "/api/v4/jobs", &v4).await;
    let complaint = json!(["property datasetList should not exist"]);
    assert_eq!((status.as_u16(), &reply["message"]), (400, &complaint));
    let filter = format!(
        "/api/v4/jobs?filter={}",
        r#"{"where":{"jobParams.datasetList.pid":"PID"}}"#.replace("PID", PID)
    );
    assert_eq!(session.get(&filter).await.1.as_array().unwrap().len(), 1);
    assert_eq!(session.get(&filter.replace("v4", "v3")).await.0, 400);
}

#[tokio::test]
async fn new_datasets_name_what_is_required() {
    let session = Session::new().await;
    let mut body = json!({
        "owner": "o", "contactEmail": "o@x.org", "sourceFolder": "/data/gold/x", "ownerGroup": "group1",
        "creationTime": "2026-01-01T00:00:00Z", "creationLocation": "/L", "principalInvestigator": "pi",
        "type": "raw",
    });
    let (status, dataset) = session.send("POST", "/api/v3/datasets", &body).await;
    assert_eq!((status.as_u16(), &dataset["datasetName"]), (201, &json!("gold/x")));
    assert!(dataset["pid"].as_str().unwrap().starts_with("20.500.12345/"));
    body.as_object_mut().unwrap().remove("owner");
    let (status, reply) = session.send("POST", "/api/v3/datasets", &body).await;
    assert_eq!((status.as_u16(), &reply["status"]), (400, &json!(400)));
    let constraints: Value = serde_json::from_str(reply["message"].as_str().unwrap()).unwrap();
    assert_eq!(constraints[0]["property"], "owner");
}

#[tokio::test]
async fn faults_strike_before_or_after_the_effect_and_requests_are_recorded() {
    let session = Session::new().await;
    let path = format!("/api/v3/datasets/{ENCODED}/datablocks");
    let catalogue = session.scicat.catalogue();
    catalogue.clear_requests();
    session.scicat.faults().add(Fault::on("POST").containing("/datablocks").status(500));
    assert_eq!(session.send("POST", &path, &datablock("one")).await.0, 500);
    assert!(catalogue.datablocks(PID).is_empty());
    session.scicat.faults().add(Fault::on("POST").containing(PID).status(503).after_effect());
    assert_eq!(session.send("POST", &path, &datablock("one")).await.0, 503);
    session.scicat.faults().add(Fault::on("POST").drop_connection().after_effect());
    let lost = session.client.post(session.scicat.url() + &path).json(&datablock("two"));
    assert!(lost.bearer_auth(session.token.as_ref().unwrap()).send().await.is_err());
    let ids: Vec<Value> =
        catalogue.datablocks(PID).into_iter().map(|block| block["archiveId"].clone()).collect();
    assert_eq!(ids, ["one", "two"]);
    let requests = catalogue.requests();
    let statuses: Vec<_> = requests.iter().map(|request| request.status).collect();
    assert_eq!(statuses, [Some(500), Some(503), None]);
    assert!(requests.iter().all(|request| request.path == path && request.body.is_some()));
}
