//! The adapter against a strict S3 server over TCP, alone and under the whole archiving.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by its panic")]

use std::sync::Arc;
use std::time::Duration;

use archiver::fake::MemoryCatalogue;
use archiver::{
    ArchiveError, Archiver, BucketName, Catalogue, Claim, Claims, DatasetId, DeletionPermit, ETag, Evidence,
    Md5Digest, ObjectAddress, ObjectKey, ObjectStore, Progress, RestoreSettings, RestoreState, Retriever,
    Settings, Sites, StorageClass, StoreError, UploadId, download_script,
};
use archiver_store::{S3Settings, S3Store};
use bytes::{Bytes, BytesMut};
use futures_util::TryStreamExt as _;
use secrecy::SecretString;
use testkit::faults::Fault;
use testkit::s3::{Options, Restore, S3Server};
use tokio_util::sync::CancellationToken;

const LANDING: &str = "dev.landingzone";
const ARCHIVE: &str = "dev.archival";
const MIB: usize = 1 << 20;

async fn server(restore: Restore) -> S3Server {
    let buckets = vec![LANDING.to_owned(), ARCHIVE.to_owned()];
    S3Server::start(Options { buckets, restore, ..Options::default() }).await.unwrap()
}

fn store(server: &S3Server) -> S3Store {
    S3Store::new(&S3Settings {
        endpoint: server.endpoint(),
        external_endpoint: None,
        region: "eu-west-1".to_owned(),
        access_key: SecretString::from(server.access_key()),
        secret_key: SecretString::from(server.secret_key()),
    })
    .unwrap()
}

fn bucket(name: &str) -> BucketName {
    name.parse().unwrap()
}

fn landing(key: &str) -> ObjectAddress {
    ObjectAddress::new(&bucket(LANDING), &ObjectKey::new(key))
}

async fn read(store: &S3Store, address: &ObjectAddress, offset: u64) -> Result<Bytes, StoreError> {
    let opened = store.get(address, None, offset).await?;
    let body: BytesMut = opened.body.try_collect().await?;
    Ok(body.freeze())
}

#[tokio::test]
async fn an_object_is_stored_looked_up_read_and_deleted() {
    let server = server(Restore::Heads(0)).await;
    let store = store(&server);
    let address = landing("a/with space/ünï+%.dat");
    let body = Bytes::from_static(b"0123456789");
    let etag = store.put(&address, body.clone(), Md5Digest::of(&body), None).await.unwrap();
    assert_eq!(etag, Md5Digest::of(&body).to_etag());

    let info = store.head(&address).await.unwrap().unwrap();
    assert_eq!((info.size, info.etag, info.restore), (10, etag.clone(), RestoreState::Online));
    assert_eq!(read(&store, &address, 0).await.unwrap(), body);
    let opened = store.get(&address, Some(&etag), 4).await.unwrap();
    assert_eq!((opened.size, opened.etag), (10, etag));
    assert_eq!(read(&store, &address, 4).await.unwrap(), body.slice(4..));

    store.delete(&DeletionPermit::unproven(address.clone(), None)).await.unwrap();
    store.delete(&DeletionPermit::unproven(address.clone(), None)).await.unwrap();
    assert_eq!(store.head(&address).await.unwrap(), None);
    assert!(matches!(read(&store, &address, 0).await, Err(StoreError::NotFound { .. })));
}

#[tokio::test]
async fn an_empty_object_can_be_read() {
    let server = server(Restore::Heads(0)).await;
    server.store().put(LANDING, "empty", b"").unwrap();
    assert!(read(&store(&server), &landing("empty"), 0).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_changed_object_is_not_read_under_its_old_tag() {
    let server = server(Restore::Heads(0)).await;
    server.store().put(LANDING, "a", b"old").unwrap();
    let store = store(&server);
    let etag = store.head(&landing("a")).await.unwrap().unwrap().etag;
    server.store().put(LANDING, "a", b"new").unwrap();
    let error = store.get(&landing("a"), Some(&etag), 0).await.unwrap_err();
    assert!(matches!(error, StoreError::Changed { .. }), "{error}");
}

#[tokio::test]
async fn an_object_that_was_replaced_is_not_deleted() {
    let server = server(Restore::Heads(0)).await;
    let store = store(&server);
    let permit =
        |content: &[u8]| DeletionPermit::unproven(landing("a b/ü"), Some(Md5Digest::of(content).to_etag()));
    server.store().put(LANDING, "a b/ü", b"new").unwrap();
    let error = store.delete(&permit(b"old")).await.unwrap_err();
    assert!(matches!(error, StoreError::Changed { .. }), "{error:?}");
    assert_eq!(server.store().get(LANDING, "a b/ü").unwrap(), b"new");

    // A store that knows no such condition.
    server.faults().add(Fault::on("DeleteObject").error("NotImplemented", 501));
    store.delete(&permit(b"new")).await.unwrap();
    assert_eq!(server.calls_of("DeleteObject"), 3);
    store.delete(&permit(b"new")).await.unwrap();
}

#[tokio::test]
async fn keys_of_any_characters_are_listed_as_they_are() {
    let server = server(Restore::Heads(0)).await;
    let keys = ["p/a+b c%20d", "p/line\nbreak\r\u{1}", "p/ü&<\"'>", "p//x/"];
    for key in keys {
        server.store().put(LANDING, key, b"x").unwrap();
    }
    let listed = store(&server).list(&bucket(LANDING), "p/", None).await.unwrap();
    let mut found: Vec<_> = listed.objects.iter().map(|object| object.key.as_str()).collect();
    let mut keys = keys.to_vec();
    found.sort_unstable();
    keys.sort_unstable();
    assert_eq!(found, keys);
}

#[tokio::test]
async fn a_body_that_does_not_have_its_digest_is_refused() {
    let server = server(Restore::Heads(0)).await;
    let error = store(&server)
        .put(&landing("a"), Bytes::from_static(b"sent"), Md5Digest::of(b"meant"), None)
        .await
        .unwrap_err();
    assert!(matches!(&error, StoreError::Refused { code, .. } if code == "BadDigest"), "{error:?}");
}

#[tokio::test]
async fn long_listings_come_page_by_page_and_only_below_the_prefix() {
    let server = server(Restore::Heads(0)).await;
    for n in 0..1003 {
        server.store().put(LANDING, &format!("p/{n:04}"), b"x").unwrap();
    }
    server.store().put(LANDING, "p1/other", b"x").unwrap();
    let store = store(&server);
    let (mut keys, mut page, mut pages) = (Vec::new(), None, 0);
    loop {
        let listed = store.list(&bucket(LANDING), "p/", page.as_ref()).await.unwrap();
        keys.extend(listed.objects.into_iter().map(|object| object.key.to_string()));
        pages += 1;
        page = listed.next;
        if page.is_none() {
            break;
        }
    }
    assert_eq!((keys.len(), pages), (1003, 2));
    assert!(keys.is_sorted() && keys.iter().all(|key| key.starts_with("p/")));
}

#[tokio::test]
async fn absent_buckets_and_uploads_are_named() {
    let server = server(Restore::Heads(0)).await;
    let store = store(&server);
    let error = store.list(&bucket("absent"), "", None).await.unwrap_err();
    assert_eq!(error.to_string(), "find bucket absent: the store has none of that name");
    let upload = UploadId("absent".to_owned());
    store.abort_upload(&landing("a"), &upload).await.unwrap();
}

#[tokio::test]
async fn wrong_keys_are_refused_and_not_shown() {
    let server = server(Restore::Heads(0)).await;
    let settings = S3Settings {
        endpoint: server.endpoint(),
        external_endpoint: None,
        region: "eu-west-1".to_owned(),
        access_key: SecretString::from(server.access_key()),
        secret_key: SecretString::from("hunter2"),
    };
    let error = S3Store::new(&settings).unwrap().list(&bucket(LANDING), "", None).await.unwrap_err();
    assert!(!error.is_transient() && matches!(error, StoreError::Refused { .. }), "{error:?}");
    assert!(!format!("{settings:?} {error:?}").contains("hunter2"));
}

#[tokio::test]
async fn a_store_that_is_away_is_a_passing_matter() {
    let server = server(Restore::Heads(0)).await;
    let store = store(&server);
    server.stop().await;
    assert!(store.head(&landing("a")).await.unwrap_err().is_transient());
}

#[tokio::test]
async fn passing_faults_are_outlasted() {
    let server = server(Restore::Heads(0)).await;
    server.faults().add(Fault::on("PutObject").error("SlowDown", 503));
    server.faults().add(Fault::on("GetObject").drop_connection());
    let store = store(&server);
    store.put(&landing("a"), Bytes::from_static(b"x"), Md5Digest::of(b"x"), None).await.unwrap();
    assert_eq!(read(&store, &landing("a"), 0).await.unwrap().as_ref(), b"x");
}

#[tokio::test]
async fn offline_objects_are_restored_and_asking_twice_is_no_error() {
    let server = server(Restore::Held).await;
    server.store().put_class(LANDING, "a", b"x", "GLACIER").unwrap();
    let store = store(&server);
    assert_eq!(store.head(&landing("a")).await.unwrap().unwrap().restore, RestoreState::Offline);
    assert!(matches!(read(&store, &landing("a"), 0).await, Err(StoreError::Offline { .. })));
    store.request_restore(&landing("a"), 7).await.unwrap();
    store.request_restore(&landing("a"), 7).await.unwrap();
    assert_eq!(store.head(&landing("a")).await.unwrap().unwrap().restore, RestoreState::UnderWay);
    server.store().finish_restores();
    assert_eq!(store.head(&landing("a")).await.unwrap().unwrap().restore, RestoreState::Restored);
    assert_eq!(read(&store, &landing("a"), 0).await.unwrap().as_ref(), b"x");
}

#[tokio::test]
async fn links_point_to_the_external_address_and_last_as_long_as_asked() {
    let store = S3Store::new(&S3Settings {
        endpoint: "s3.internal:9000".to_owned(),
        external_endpoint: Some("s3-external.example:9443".to_owned()),
        region: "eu-west-1".to_owned(),
        access_key: SecretString::from("user"),
        secret_key: SecretString::from("secret"),
    })
    .unwrap();
    let address = ObjectAddress::new(&bucket(ARCHIVE), &ObjectKey::new("a b/c_0.tar"));
    let link = store.presign_get(&address, Duration::from_hours(7 * 24)).await.unwrap();
    let url = url::Url::parse(link.expose()).unwrap();
    assert_eq!((url.host_str(), url.port()), (Some("s3-external.example"), Some(9443)));
    assert_eq!((url.scheme(), url.path()), ("https", "/dev.archival/a%20b/c_0.tar"));
    let query: std::collections::BTreeMap<_, _> = url.query_pairs().collect();
    assert_eq!((&*query["X-Amz-Expires"], &*query["X-Amz-SignedHeaders"]), ("604800", "host"));
    assert!(store.presign_get(&address, Duration::from_hours(8 * 24)).await.is_err());
}

/// Archiving and retrieving over real connections, with a catalogue in memory.
struct World {
    server: S3Server,
    catalogue: Arc<MemoryCatalogue>,
    dataset: DatasetId,
    settings: Settings,
    files: Vec<(String, Vec<u8>)>,
}

impl World {
    async fn start() -> Self {
        let big = (0..23 * MIB).map(|n| u8::try_from((n * n / 7 + n) % 251).unwrap()).collect();
        let mut files = vec![
            ("big.mrc".to_owned(), big),
            ("empty".to_owned(), Vec::new()),
            (format!("long/{}/ünï Ω.dat", "d".repeat(120)), vec![7; 3000]),
        ];
        files.extend((0..40).map(|n| (format!("many/{n:02}"), vec![n; 100])));
        let world = Self {
            server: server(Restore::Heads(0)).await,
            catalogue: Arc::default(),
            dataset: "20.500.12345/gold-0001".parse().unwrap(),
            settings: Settings {
                part_size: 5 * MIB as u64,
                target_size: 30 * MIB as u64,
                ..Settings::default()
            },
            files,
        };
        let claim = |(path, content): &(String, Vec<u8>)| Claim {
            path: path.clone(),
            size: content.len() as u64,
            md5: Some(Md5Digest::of(content).to_string()),
        };
        let files = world.files.iter().map(claim).collect();
        world.catalogue.set_claims(&world.dataset, Claims { source_folder: None, files });
        for (path, content) in &world.files {
            world.server.store().put(LANDING, &world.key(path), content).unwrap();
        }
        world
    }

    fn key(&self, path: &str) -> String {
        format!("{}{path}", self.dataset.raw_files_prefix())
    }

    fn store(&self) -> Arc<dyn ObjectStore> {
        Arc::new(store(&self.server))
    }

    async fn archive(&self) -> Result<Vec<Evidence>, ArchiveError> {
        let sites = Sites { landing: bucket(LANDING), archive: bucket(ARCHIVE) };
        let catalogue: Arc<dyn Catalogue> = Arc::clone(&self.catalogue) as _;
        let run =
            Archiver::new(self.store(), catalogue, sites, self.settings.clone()).begin(&self.dataset).await?;
        let attempt = async {
            let (cancel, progress) = (CancellationToken::new(), Progress::none());
            let claims = run.claims().await?;
            let landed = run.landed().await?;
            run.make_readable(&landed, &cancel, &progress).await?;
            let (mut archived, mut evidence) = (Vec::new(), Vec::new());
            for datablock in run.plan(landed, &claims)?.datablocks {
                let stored = run.store(&datablock, &cancel, &progress).await?;
                let verified = run.verify(stored, &cancel, &progress).await?;
                evidence.push(verified.evidence());
                archived.push(run.register(verified).await?);
            }
            Ok((archived, evidence))
        };
        match attempt.await {
            Ok((archived, evidence)) => {
                run.release(&archived).await?;
                Ok(evidence)
            }
            Err(error) => {
                assert_eq!(run.undo().await.problems, [] as [&str; 0]);
                Err(error)
            }
        }
    }

    fn left(&self, bucket: &str) -> usize {
        self.server.store().objects(bucket, "").unwrap().len()
    }

    /// Runs the download script as a user would, and compares what it unpacks.
    async fn retrieve_and_compare(&self) {
        let catalogue: Arc<dyn Catalogue> = Arc::clone(&self.catalogue) as _;
        let restore = RestoreSettings { poll: Duration::from_millis(1), ..RestoreSettings::default() };
        let retriever =
            Retriever::new(self.store(), catalogue, bucket(ARCHIVE), restore, Duration::from_hours(1));
        let datablocks = retriever.datablocks(&self.dataset).await.unwrap();
        let readable = retriever
            .await_readable(&self.dataset, &datablocks, &CancellationToken::new(), &Progress::none())
            .await
            .unwrap();
        let script = download_script(&retriever.publish(&readable).await.unwrap());
        let folder = tempfile::tempdir().unwrap();
        let mut bash = tokio::process::Command::new("bash");
        let output = bash.arg("-c").arg(script).current_dir(folder.path()).output().await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        for (path, content) in &self.files {
            assert!(std::fs::read(folder.path().join(path)).unwrap() == *content, "{path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dataset_is_archived_read_back_and_downloaded_again() {
    let world = World::start().await;
    assert_eq!(world.archive().await.unwrap(), [Evidence::ReadBack]);
    assert_eq!((world.left(LANDING), world.left(ARCHIVE)), (0, 1));
    assert_eq!(world.server.calls_of("UploadPart"), 5);
    world.retrieve_and_compare().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offline_archive_is_proven_by_its_tag_and_restored_for_the_user() {
    let mut world = World::start().await;
    world.settings.storage_class = Some(StorageClass::new("GLACIER"));
    assert_eq!(world.archive().await.unwrap(), [Evidence::ETag]);
    world.retrieve_and_compare().await;
    assert_eq!(world.server.calls_of("RestoreObject"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn passing_faults_of_every_call_are_outlasted() {
    let world = World::start().await;
    for operation in ["ListObjectsV2", "HeadObject", "CreateMultipartUpload", "UploadPart", "DeleteObject"] {
        world.server.faults().add(Fault::on(operation).error("InternalError", 500));
    }
    for nth in [1, 5, 20] {
        world.server.faults().add(Fault::on("GetObject").nth(nth).drop_connection());
    }
    world.server.faults().add(Fault::on("CompleteMultipartUpload").after_effect().drop_connection());
    world.archive().await.unwrap();
    assert_eq!(world.left(LANDING), 0);
    world.retrieve_and_compare().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lasting_fault_leaves_landing_zone_and_archive_as_they_were() {
    for operation in ["GetObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"] {
        let world = World::start().await;
        world.server.faults().add(Fault::on(operation).times(u32::MAX).error("AccessDenied", 403));
        let error = world.archive().await.unwrap_err();
        assert!(!error.is_transient(), "{operation}: {error:?}");
        assert_eq!((world.left(LANDING), world.left(ARCHIVE)), (world.files.len(), 0), "{operation}");
        assert!(world.server.store().uploads(ARCHIVE).unwrap().is_empty(), "{operation}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_replaced_after_listing_is_not_archived() {
    let world = World::start().await;
    let sites = Sites { landing: bucket(LANDING), archive: bucket(ARCHIVE) };
    let catalogue: Arc<dyn Catalogue> = Arc::clone(&world.catalogue) as _;
    let archiver = Archiver::new(world.store(), catalogue, sites, world.settings.clone());
    let run = archiver.begin(&world.dataset).await.unwrap();
    let claims = run.claims().await.unwrap();
    let plan = run.plan(run.landed().await.unwrap(), &claims).unwrap();
    world.server.store().put(LANDING, &world.key("many/07"), &[8; 100]).unwrap();
    let error =
        run.store(&plan.datablocks[0], &CancellationToken::new(), &Progress::none()).await.unwrap_err();
    assert!(matches!(error, ArchiveError::Source(StoreError::Changed { .. })), "{error:?}");
    assert_eq!(world.left(ARCHIVE), 0);
}

#[tokio::test]
async fn tags_of_multipart_objects_follow_the_law() {
    let world = World::start().await;
    world.archive().await.unwrap();
    let tar = ObjectAddress::new(&bucket(ARCHIVE), &world.dataset.tar_key(0));
    let info = store(&world.server).head(&tar).await.unwrap().unwrap();
    let content = world.server.store().get(ARCHIVE, tar.key.as_str()).unwrap();
    let digests: Vec<_> = content.chunks(5 * MIB).map(Md5Digest::of).collect();
    assert_eq!(info.etag, ETag::of_parts(&digests));
}
