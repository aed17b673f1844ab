//! The adapter against the SciCat simulator, which keeps to what was observed on a real backend.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by its panic")]

use std::time::Duration;

use archiver::{
    ArchiveStatus, ArchivedFile, Catalogue, CatalogueError, DataFile, Datablock, DatasetId, FailureClass,
    JobId, JobResult, JobStatus, LifecycleChange, LifecycleStatus, Md5Digest, RetrieveStatus,
};
use archiver_scicat::{SciCat, SciCatSettings};
use jiff::Timestamp;
use secrecy::SecretString;
use serde_json::json;
use testkit::faults::Fault;
use testkit::scicat;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use uuid::Uuid;

const PID: &str = "20.500.12345/gold 0001";

struct World {
    server: scicat::SciCat,
    dataset: DatasetId,
}

impl World {
    async fn start() -> Self {
        let server = scicat::SciCat::start(scicat::Options::default()).await.unwrap();
        server.catalogue().create_dataset(PID);
        Self { server, dataset: PID.parse().unwrap() }
    }

    fn client(&self, version: &str) -> SciCat {
        SciCat::new(SciCatSettings {
            endpoint: self.server.url(),
            api_prefix: "/api/v3".to_owned(),
            datasets_prefix: format!("/api/{version}"),
            jobs_prefix: format!("/api/{version}"),
            user: SecretString::from(self.server.username()),
            password: SecretString::from(self.server.password()),
        })
        .unwrap()
    }

    fn count(&self, method: &str, path_end: &str) -> usize {
        let requests = self.server.catalogue().requests();
        requests.iter().filter(|request| request.method == method && request.path.ends_with(path_end)).count()
    }

    fn job(&self) -> JobId {
        self.server.catalogue().create_job("archive", &[PID]).parse().unwrap()
    }

    fn datablock(&self, index: usize, files: usize) -> Datablock {
        let file = |n: usize| DataFile {
            path: format!("folder/ünï {n}"),
            size: 3,
            time: Timestamp::UNIX_EPOCH,
            chk: Md5Digest::of(&n.to_le_bytes()),
            uid: "0",
            gid: "0",
            perm: "644",
        };
        Datablock {
            archive_id: self.dataset.tar_key(index),
            size: 3 * files as u64,
            packed_size: 10_240,
            chk_alg: Datablock::CHECKSUM_ALGORITHM,
            version: Datablock::VERSION,
            data_file_list: (0..files).map(file).collect(),
        }
    }
}

#[tokio::test]
async fn a_job_is_read_and_updated_in_both_faces() {
    for version in ["v3", "v4"] {
        let world = World::start().await;
        let client = world.client(version);
        let job = world.job();
        assert_eq!(client.job_datasets(job).await.unwrap(), std::slice::from_ref(&world.dataset));
        assert_eq!(client.job_status(job).await.unwrap(), None, "the backend's own first word");
        client.update_job(job, JobStatus::InProgress, None).await.unwrap();
        assert_eq!(client.job_status(job).await.unwrap(), Some(JobStatus::InProgress));
        let result = JobResult { result: Vec::new(), download_script: "c2NyaXB0".to_owned() };
        client.update_job(job, JobStatus::FinishedSuccessful, Some(&result)).await.unwrap();

        let history = world.server.catalogue().job_history(&job.to_string());
        assert!(
            history.ends_with(&["inProgress".to_owned(), "finishedSuccessful".to_owned()]),
            "{history:?}"
        );
        let record = world.server.catalogue().job(&job.to_string()).unwrap();
        assert_eq!(record["jobResultObject"], json!({"result": [], "downloadScript": "c2NyaXB0"}));
        assert_eq!(world.count("POST", "/auth/login"), 1, "the token is reused");
    }
}

#[tokio::test]
async fn an_unknown_job_is_not_found_although_scicat_calls_it_a_bad_request() {
    let world = World::start().await;
    let error = world.client("v3").job_datasets(JobId(Uuid::nil())).await.unwrap_err();
    assert!(matches!(error, CatalogueError::NotFound { .. }), "{error}");
}

#[tokio::test]
async fn a_lifecycle_change_leaves_the_rest_of_the_dataset_alone() {
    let world = World::start().await;
    let fields =
        json!({"accessGroups": ["g"], "isPublished": true, "datasetlifecycle": {"exportedTo": "tape"}});
    world.server.catalogue().patch_dataset(PID, &fields);
    let client = world.client("v3");
    assert_eq!(client.lifecycle_status(&world.dataset).await.unwrap(), LifecycleStatus::default());
    client.update_lifecycle(&world.dataset, &LifecycleChange::archived()).await.unwrap();
    client.update_lifecycle(&world.dataset, &LifecycleChange::retrieve_started()).await.unwrap();
    let status = client.lifecycle_status(&world.dataset).await.unwrap();
    assert_eq!(status.archive, Some(ArchiveStatus::DatasetOnArchiveDisk));
    assert_eq!(status.retrieve, Some(RetrieveStatus::Started));

    let dataset = world.server.catalogue().dataset(PID).unwrap();
    assert_eq!((&dataset["accessGroups"], &dataset["isPublished"]), (&json!(["g"]), &json!(true)));
    let lifecycle = &dataset["datasetlifecycle"];
    assert_eq!(lifecycle["archiveStatusMessage"], "datasetOnArchiveDisk");
    assert_eq!(lifecycle["retrieveStatusMessage"], "started");
    assert_eq!((&lifecycle["archivable"], &lifecycle["retrievable"]), (&json!(false), &json!(true)));
    assert_eq!(lifecycle["exportedTo"], "tape");
}

#[tokio::test]
async fn claims_carry_the_source_folder_and_checksums_of_all_blocks() {
    let world = World::start().await;
    let md5 = Md5Digest::of(b"x").to_string();
    for path in ["a", "b/ü"] {
        let file = json!({"path": path, "size": 1, "time": "2026-01-01T00:00:00.000Z", "chk": md5});
        world.server.catalogue().add_origdatablock(PID, &[file]);
    }
    let claims = world.client("v3").claims(&world.dataset).await.unwrap();
    assert_eq!(claims.source_folder, Some(format!("/data/{PID}")));
    let files: Vec<_> =
        claims.files.iter().map(|claim| (claim.path.as_str(), claim.md5.as_deref())).collect();
    assert_eq!(files, [("a", Some(md5.as_str())), ("b/ü", Some(md5.as_str()))]);
}

#[tokio::test]
async fn datablocks_are_registered_listed_and_removed_once() {
    let world = World::start().await;
    let client = world.client("v3");
    let registered = client.register_datablock(&world.dataset, &world.datablock(0, 2)).await.unwrap();
    assert_eq!(client.datablocks(&world.dataset).await.unwrap(), std::slice::from_ref(&registered));
    assert_eq!(world.server.catalogue().dataset(PID).unwrap()["packedSize"], 10_240);

    let files = client.archived_files(&world.dataset).await.unwrap();
    let md5 = Some(Md5Digest::of(&1_usize.to_le_bytes()).to_string());
    assert_eq!(files.len(), 2);
    assert_eq!(files[1], ArchivedFile { path: "folder/ünï 1".to_owned(), size: 3, md5 });

    client.delete_datablock(&world.dataset, &registered.id).await.unwrap();
    client.delete_datablock(&world.dataset, &registered.id).await.unwrap();
    assert_eq!(client.datablocks(&world.dataset).await.unwrap(), []);
}

#[tokio::test]
async fn a_registration_whose_answer_is_lost_is_found_and_not_repeated() {
    for fault in [
        Fault::on("POST").containing("/datablocks").after_effect().drop_connection(),
        Fault::on("POST").containing("/datablocks").after_effect().status(500),
        Fault::on("POST").containing("/datablocks").after_effect().status(504),
    ] {
        let world = World::start().await;
        world.server.faults().add(fault.clone());
        let registered = world.client("v3").register_datablock(&world.dataset, &world.datablock(0, 2)).await;
        assert_eq!(registered.unwrap().archive_id, world.dataset.tar_key(0), "{fault:?}");
        assert_eq!(world.count("POST", "/datablocks"), 1, "{fault:?}");
        assert_eq!(world.server.catalogue().datablocks(PID).len(), 1);
    }
}

#[tokio::test]
async fn a_registration_that_did_not_happen_is_repeated_a_few_times() {
    let world = World::start().await;
    world.server.faults().add(Fault::on("POST").containing("/datablocks").status(500));
    world.client("v3").register_datablock(&world.dataset, &world.datablock(0, 1)).await.unwrap();
    assert_eq!(world.server.catalogue().datablocks(PID).len(), 1);

    world.server.faults().add(Fault::on("POST").containing("/datablocks").times(u32::MAX).status(500));
    let error =
        world.client("v3").register_datablock(&world.dataset, &world.datablock(1, 1)).await.unwrap_err();
    assert!(matches!(error, CatalogueError::Refused { status: 500, .. }), "{error}");
    assert_eq!(world.count("POST", "/datablocks"), 2 + 3);
}

#[tokio::test]
async fn a_registration_of_unknown_outcome_is_never_told_as_refused() {
    let world = World::start().await;
    world.server.faults().add(Fault::on("POST").containing("/datablocks").after_effect().drop_connection());
    world.server.faults().add(Fault::on("GET").containing("/datablocks").times(2).status(403));
    let error =
        world.client("v3").register_datablock(&world.dataset, &world.datablock(0, 1)).await.unwrap_err();
    assert!(error.is_transient(), "{error:?}");
}

#[tokio::test]
async fn an_archive_id_that_is_taken_by_other_content_is_refused_and_kept() {
    let world = World::start().await;
    let client = world.client("v3");
    client.register_datablock(&world.dataset, &world.datablock(0, 2)).await.unwrap();
    let error = client.register_datablock(&world.dataset, &world.datablock(0, 3)).await.unwrap_err();
    assert!(matches!(error, CatalogueError::Refused { status: 409, .. }), "{error}");
    assert_eq!(client.datablocks(&world.dataset).await.unwrap()[0].size, 6);
}

#[tokio::test]
async fn the_largest_planned_record_fits_the_catalogue() {
    let world = World::start().await;
    let datablock = world.datablock(0, archiver::MAX_FILES_PER_DATABLOCK);
    world.client("v3").register_datablock(&world.dataset, &datablock).await.unwrap();
}

#[tokio::test]
async fn an_expired_token_is_renewed_whether_it_is_known_or_not() {
    let world = World::start().await;
    let client = world.client("v3");
    client.datablocks(&world.dataset).await.unwrap();
    world.server.catalogue().expire_tokens();
    client.datablocks(&world.dataset).await.unwrap();
    assert_eq!(world.count("POST", "/auth/login"), 2);

    let short = scicat::Options { token_life: Duration::ZERO, ..scicat::Options::default() };
    let server = scicat::SciCat::start(short).await.unwrap();
    let world = World { server, ..World::start().await };
    world.server.catalogue().create_dataset(PID);
    // Every token is dead on arrival: one renewal, then the catalogue's word stands.
    let error = world.client("v3").datablocks(&world.dataset).await.unwrap_err();
    assert!(matches!(error, CatalogueError::Denied { .. }), "{error}");
    assert_eq!(world.count("GET", "/datablocks"), 2);
}

#[tokio::test]
async fn a_wrong_password_is_told_at_once_and_never_shown() {
    let world = World::start().await;
    let client = SciCat::new(SciCatSettings {
        endpoint: world.server.url(),
        api_prefix: "/api/v3".to_owned(),
        datasets_prefix: "/api/v3".to_owned(),
        jobs_prefix: "/api/v3".to_owned(),
        user: SecretString::from(world.server.username()),
        password: SecretString::from("hunter2"),
    })
    .unwrap();
    let error = client.datablocks(&world.dataset).await.unwrap_err();
    assert!(matches!(error, CatalogueError::Login { .. }), "{error}");
    assert!(!format!("{client:?} {error} {error:?}").contains("hunter2"));
    assert_eq!(world.count("POST", "/auth/login"), 1);
}

#[tokio::test]
async fn reads_and_updates_are_repeated_while_the_catalogue_is_away() {
    let world = World::start().await;
    for fault in [
        Fault::on("GET").status(503),
        Fault::on("GET").drop_connection(),
        Fault::on("PATCH").after_effect().status(502),
        Fault::on("POST").containing("/auth/login").status(503),
    ] {
        world.server.faults().add(fault);
        let client = world.client("v3");
        client.datablocks(&world.dataset).await.unwrap();
        client.update_lifecycle(&world.dataset, &LifecycleChange::archive_started()).await.unwrap();
    }
}

#[tokio::test]
async fn a_catalogue_that_is_not_there_is_a_passing_matter() {
    let world = World::start().await;
    let client = world.client("v3");
    world.server.stop().await;
    let error = client
        .update_lifecycle(
            &"20.500/x".parse().unwrap(),
            &LifecycleChange::archive_failed(FailureClass::System),
        )
        .await
        .unwrap_err();
    assert!(error.is_transient(), "{error}");
}

/// A server that gives these answers, one to a connection, and then none; and the requests it has got.
async fn canned(answers: Vec<String>) -> (String, tokio::task::JoinHandle<Vec<String>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let serving = tokio::spawn(async move {
        let mut requests = Vec::new();
        for answer in answers {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let count = socket.read(&mut request).await.unwrap();
            requests.push(String::from_utf8_lossy(&request[..count]).into_owned());
            socket.write_all(answer.as_bytes()).await.unwrap();
            socket.shutdown().await.unwrap();
        }
        requests
    });
    (endpoint, serving)
}

fn answer(head: &str, body: &str) -> String {
    format!("HTTP/1.1 {head}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
}

fn client_of(endpoint: String) -> SciCat {
    SciCat::new(SciCatSettings {
        endpoint,
        api_prefix: "/api/v3".to_owned(),
        datasets_prefix: "/api/v3".to_owned(),
        jobs_prefix: "/api/v3".to_owned(),
        user: SecretString::from("me"),
        password: SecretString::from("hunter2"),
    })
    .unwrap()
}

#[tokio::test]
async fn a_redirected_update_is_an_error_and_the_password_does_not_travel_on() {
    let (elsewhere, other) = canned(vec![answer("200 OK", "{}")]).await;
    let login = r#"{"access_token":"t","expires_in":3600}"#;
    let redirected = answer(&format!("302 Found\r\nlocation: {elsewhere}/"), "");
    let (endpoint, server) = canned(vec![answer("201 Created", login), redirected]).await;
    let change = LifecycleChange::archive_started();
    let error = client_of(endpoint).update_lifecycle(&"p/1".parse().unwrap(), &change).await.unwrap_err();
    assert!(matches!(error, CatalogueError::Refused { status: 302, .. }), "{error:?}");
    assert!(server.await.unwrap()[1].starts_with("PATCH "));

    let kept = answer(&format!("307 Temporary Redirect\r\nlocation: {elsewhere}/"), "");
    let (endpoint, _server) = canned(vec![kept]).await;
    let error = client_of(endpoint).datablocks(&"p/1".parse().unwrap()).await.unwrap_err();
    assert!(matches!(error, CatalogueError::Refused { status: 307, .. }), "{error:?}");
    assert!(!other.is_finished(), "nobody came to the other server");
}

#[tokio::test]
async fn the_life_of_a_token_may_be_told_in_any_way() {
    for life in ["18446744073709551615", "\"1h\"", "-1", "null"] {
        let login = format!(r#"{{"access_token":"t","expires_in":{life}}}"#);
        let answers = [answer("201 Created", &login), answer("200 OK", "[]"), answer("200 OK", "[]")];
        let (endpoint, server) = canned(answers.to_vec()).await;
        let client = client_of(endpoint);
        for _ in 0..2 {
            assert_eq!(client.datablocks(&"p/1".parse().unwrap()).await.unwrap(), [], "{life}");
        }
        assert_eq!(server.await.unwrap().iter().filter(|request| request.contains("/auth/login")).count(), 1);
    }
}

#[tokio::test]
async fn an_unknown_dataset_is_not_found() {
    let world = World::start().await;
    let client = world.client("v3");
    let unknown: DatasetId = "20.500/unknown".parse().unwrap();
    let error = client.update_lifecycle(&unknown, &LifecycleChange::archive_started()).await.unwrap_err();
    assert!(matches!(error, CatalogueError::NotFound { .. }), "{error}");
    assert!(matches!(client.claims(&unknown).await, Err(CatalogueError::NotFound { .. })));
}
