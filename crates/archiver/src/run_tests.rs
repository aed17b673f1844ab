//! Archiving against the store and catalogue in memory.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::*;
use crate::fake::{MemoryCatalogue, MemoryStore, catalogue_unavailable, unavailable};
use crate::{Claim, Evidence, FailureClass, Md5Digest, StoreError, Warning, tarball};

const MIB: usize = 1 << 20;

struct World {
    store: Arc<MemoryStore>,
    catalogue: Arc<MemoryCatalogue>,
    sites: Sites,
    dataset: DatasetId,
    settings: Settings,
}

impl World {
    /// A landing zone with these files, all of them claimed with their checksums.
    fn with(files: &[(&str, Vec<u8>)]) -> Self {
        let world = Self {
            store: Arc::default(),
            catalogue: Arc::default(),
            sites: Sites { landing: "dev.landing".parse().unwrap(), archive: "dev.archive".parse().unwrap() },
            dataset: "20.500/x".parse().unwrap(),
            settings: Settings {
                target_size: 30 * MIB as u64,
                part_size: 5 * MIB as u64,
                ..Settings::default()
            },
        };
        for (path, content) in files {
            world.store.insert(world.landed(path), content.clone(), None);
        }
        let claim = |(path, content): &(&str, Vec<u8>)| Claim {
            path: (*path).to_owned(),
            size: content.len() as u64,
            md5: Some(Md5Digest::of(content).to_string()),
        };
        let claims = Claims { source_folder: None, files: files.iter().map(claim).collect() };
        world.catalogue.set_claims(&world.dataset, claims);
        world
    }

    fn small() -> Self {
        Self::with(&[("a.txt", b"alpha".to_vec()), ("b/empty", vec![]), ("b/ünï.dat", vec![7; 3000])])
    }

    /// One datablock of three parts and one small datablock.
    fn large() -> Self {
        Self::with(&[("big.mrc", bytes(12 * MIB)), ("huge.mrc", bytes(29 * MIB)), ("z", vec![1])])
    }

    fn landed(&self, path: &str) -> ObjectAddress {
        let key = ObjectKey::new(format!("{}{path}", self.dataset.raw_files_prefix()));
        ObjectAddress::new(&self.sites.landing, &key)
    }

    fn tar(&self, index: usize) -> ObjectAddress {
        ObjectAddress::new(&self.sites.archive, &self.dataset.tar_key(index))
    }

    fn archiver(&self) -> Archiver {
        let store: Arc<dyn ObjectStore> = Arc::clone(&self.store) as _;
        let catalogue: Arc<dyn Catalogue> = Arc::clone(&self.catalogue) as _;
        Archiver::new(store, catalogue, self.sites.clone(), self.settings.clone())
    }

    async fn begin(&self) -> DatasetRun {
        self.archiver().begin(&self.dataset).await.unwrap()
    }

    fn landing_keys(&self) -> Vec<String> {
        self.store.keys(&self.sites.landing)
    }

    fn archive_keys(&self) -> Vec<String> {
        self.store.keys(&self.sites.archive)
    }
}

fn bytes(count: usize) -> Vec<u8> {
    (0..count).map(|n| u8::try_from((n * n / 7 + n) % 251).unwrap()).collect()
}

async fn planned(run: &DatasetRun) -> Result<Plan, ArchiveError> {
    let claims = run.claims().await?;
    let landed = run.landed().await?;
    run.make_readable(&landed, &CancellationToken::new(), &Progress::none()).await?;
    run.plan(landed, &claims)
}

async fn archived(run: &DatasetRun) -> Result<Vec<ArchivedDatablock>, ArchiveError> {
    let mut archived = Vec::new();
    for datablock in planned(run).await?.datablocks {
        let cancel = CancellationToken::new();
        let stored = run.store(&datablock, &cancel, &Progress::none()).await?;
        let verified = run.verify(stored, &cancel, &Progress::none()).await?;
        archived.push(run.register(verified).await?);
    }
    Ok(archived)
}

#[tokio::test]
async fn a_dataset_travels_into_tars_and_out_of_the_landing_zone() {
    let world = World::large();
    let run = world.begin().await;
    let archived = archived(&run).await.unwrap();
    let released = run.release(&archived).await.unwrap();

    assert_eq!((released.deleted, released.kept.len()), (3, 0));
    assert_eq!(world.landing_keys(), [] as [&str; 0]);
    assert_eq!(world.catalogue.archive_ids(&world.dataset), world.archive_keys());
    assert_eq!(world.store.open_uploads(), 0);
    let mut members = Vec::new();
    for datablock in &archived {
        let tar = world.store.content(&datablock.verified.address).unwrap();
        assert_eq!(tar.len() as u64, datablock.record().packed_size);
        tarball::read_members(tar.as_ref(), |member| {
            members.push((member.path, member.md5));
            Ok::<(), std::io::Error>(())
        })
        .unwrap();
    }
    let expected = [("big.mrc", bytes(12 * MIB)), ("huge.mrc", bytes(29 * MIB)), ("z", vec![1])];
    assert_eq!(members, expected.map(|(path, content)| (path.to_owned(), Md5Digest::of(&content))));
}

#[tokio::test]
async fn the_record_says_what_lies_in_the_tar() {
    let world = World::small();
    let archived = archived(&world.begin().await).await.unwrap();
    let record = serde_json::to_value(archived[0].record()).unwrap();
    insta::assert_json_snapshot!(record, @r#"
    {
      "archiveId": "openem-network/datasets/20.500/x/datablocks/20.500-x_0.tar",
      "chkAlg": "md5",
      "dataFileList": [
        {
          "chk": "2c1743a391305fbf367df8e4f069f9f9",
          "gid": "0",
          "path": "a.txt",
          "perm": "644",
          "size": 5,
          "time": "2023-11-14T22:13:21Z",
          "uid": "0"
        },
        {
          "chk": "d41d8cd98f00b204e9800998ecf8427e",
          "gid": "0",
          "path": "b/empty",
          "perm": "644",
          "size": 0,
          "time": "2023-11-14T22:13:22Z",
          "uid": "0"
        },
        {
          "chk": "c9b1bae2bf93c8b9b87b914640dc969c",
          "gid": "0",
          "path": "b/ünï.dat",
          "perm": "644",
          "size": 3000,
          "time": "2023-11-14T22:13:23Z",
          "uid": "0"
        }
      ],
      "packedSize": 7168,
      "size": 3005,
      "version": "1.0"
    }
    "#);
}

#[tokio::test]
async fn the_same_files_give_the_same_tar() {
    let mut tars = Vec::new();
    for _ in 0..2 {
        let world = World::small();
        archived(&world.begin().await).await.unwrap();
        tars.push(world.store.content(&world.tar(0)).unwrap());
    }
    assert_eq!(tars[0], tars[1]);
}

#[tokio::test]
async fn input_that_is_not_as_declared_is_the_users_error_and_changes_nothing() {
    let empty = World::with(&[]);
    empty.catalogue.set_claims(
        &empty.dataset,
        Claims { source_folder: None, files: vec![Claim { path: "a".to_owned(), size: 1, md5: None }] },
    );
    let unclaimed = World::small();
    unclaimed.catalogue.set_claims(&unclaimed.dataset, Claims::default());
    let missing = World::small();
    missing.store.remove(&missing.landed("a.txt"));
    let resized = World::small();
    resized.store.insert(resized.landed("a.txt"), "alphabet", None);
    let escaping = World::small();
    escaping.store.insert(escaping.landed("../../etc/passwd"), "x", None);
    let both = World::small();
    both.store.insert(both.landed("a.txt/b"), "x", None);
    let unlisted = World::small();
    unlisted.catalogue.set_fault(|call| (call == "claims").then(|| catalogue_unavailable("list")));

    for (world, part) in [
        (empty, "no files in the landing zone"),
        (unclaimed, "lists no files"),
        (missing, "\"a.txt\" is missing"),
        (resized, "\"a.txt\" has 8 bytes instead of 5"),
        (escaping, "\"..\" segment"),
        (both, "other files lie below it"),
        (unlisted, "read the list of files"),
    ] {
        let before = world.landing_keys();
        let error = planned(&world.begin().await).await.unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
        assert_eq!(error.class(), FailureClass::User, "{error}");
        assert_eq!(world.landing_keys(), before);
        assert_eq!(world.archive_keys(), [] as [&str; 0]);
    }
}

#[tokio::test]
async fn a_file_with_another_checksum_fails_its_datablock() {
    let world = World::small();
    world.store.insert(world.landed("a.txt"), "alphX", None);
    let run = world.begin().await;
    let error = archived(&run).await.unwrap_err();
    assert!(matches!(&error, ArchiveError::Checksum { path, .. } if path.as_str() == "a.txt"), "{error}");
    assert_eq!(error.class(), FailureClass::User);
    assert_eq!(world.archive_keys(), [] as [&str; 0]);
}

#[tokio::test]
async fn an_object_that_changes_after_listing_fails_its_datablock() {
    for hide_tags in [false, true] {
        let world = World::with(&[("a", vec![1; 10]), ("b", vec![2; 10])]);
        if hide_tags {
            world.store.hide_tags_in_listings();
        }
        let run = world.begin().await;
        let plan = planned(&run).await.unwrap();
        // Without a listed tag only another size can be told at once; the claimed checksum tells the rest.
        world.store.insert(world.landed("b"), vec![3; if hide_tags { 11 } else { 10 }], None);
        let error =
            run.store(&plan.datablocks[0], &CancellationToken::new(), &Progress::none()).await.unwrap_err();
        assert!(matches!(error, ArchiveError::Source(StoreError::Changed { .. })), "{error:?}");
        assert_eq!(error.class(), FailureClass::User);
        assert_eq!(world.archive_keys(), [] as [&str; 0]);
    }
}

#[tokio::test]
async fn a_failing_upload_tells_its_own_error_and_leaves_no_upload_open() {
    for call in ["create_upload", "upload_part", "complete_upload"] {
        let world = World::large();
        world.store.set_fault(move |method, _| (method == call).then(|| unavailable("store")));
        let run = world.begin().await;
        let error = archived(&run).await.unwrap_err();
        assert!(matches!(error, ArchiveError::Store(StoreError::Unavailable { .. })), "{call}: {error:?}");
        assert_eq!(world.store.open_uploads(), 0, "{call}");
        run.undo().await;
        assert_eq!((world.archive_keys().len(), world.landing_keys().len()), (0, 3), "{call}");
    }
}

#[tokio::test]
async fn a_lost_answer_to_the_completion_does_not_fail_the_datablock() {
    let world = World::with(&[("big.mrc", bytes(12 * MIB))]);
    let run = world.begin().await;
    let plan = planned(&run).await.unwrap();
    // The object is assembled by somebody (here: the test) although the call fails.
    let mut tar =
        tarball::head("big.mrc", 12 * MIB as u64, plan.datablocks[0].files()[0].last_modified.as_second());
    tar.extend(bytes(12 * MIB));
    tar.extend_from_slice(&tarball::TRAILER);
    let store = Arc::clone(&world.store);
    let address = world.tar(0);
    let digests: Vec<_> = tar.chunks(5 * MIB).map(Md5Digest::of).collect();
    world.store.set_fault(move |method, _| {
        (method == "complete_upload").then(|| {
            store.insert_with_tag(address.clone(), tar.clone(), crate::ETag::of_parts(&digests));
            unavailable("complete")
        })
    });
    run.store(&plan.datablocks[0], &CancellationToken::new(), &Progress::none()).await.unwrap();
    assert_eq!(world.store.open_uploads(), 0);
    world.store.clear_fault();
}

#[tokio::test]
async fn a_copy_that_differs_is_not_proven_and_never_released() {
    let world = World::with(&[("big.mrc", bytes(2 * MIB))]);
    let run = world.begin().await;
    let plan = planned(&run).await.unwrap();
    world.store.corrupt_what_is_stored();
    let cancel = CancellationToken::new();
    let stored = run.store(&plan.datablocks[0], &cancel, &Progress::none()).await.unwrap();
    let error = run.verify(stored, &cancel, &Progress::none()).await.unwrap_err();
    assert!(matches!(error, ArchiveError::Verify(VerifyError::Content { .. })), "{error}");
    assert_eq!(error.class(), FailureClass::System);
}

#[tokio::test]
async fn evidence_is_the_tag_where_the_copy_is_offline_and_the_copy_where_tags_are_opaque() {
    let mut world = World::large();
    world.settings.storage_class = Some(StorageClass::new("GLACIER"));
    let glacier = archived(&world.begin().await).await.unwrap();
    assert!(glacier.iter().all(|datablock| datablock.verified.evidence() == Evidence::ETag));
    assert_eq!(world.store.class(&world.tar(0)), world.settings.storage_class);

    let world = World::large();
    world.store.use_opaque_tags();
    let opaque = archived(&world.begin().await).await.unwrap();
    assert!(opaque.iter().all(|datablock| datablock.verified.evidence() == Evidence::ReadBack));

    let mut world = World::large();
    world.store.use_opaque_tags();
    world.settings.storage_class = Some(StorageClass::new("GLACIER"));
    let error = archived(&world.begin().await).await.unwrap_err();
    assert!(matches!(error, ArchiveError::Verify(VerifyError::Unprovable { .. })), "{error}");
}

#[tokio::test]
async fn a_copy_that_was_replaced_or_lost_is_not_proven() {
    for lost in [false, true] {
        let world = World::small();
        let run = world.begin().await;
        let plan = planned(&run).await.unwrap();
        let cancel = CancellationToken::new();
        let stored = run.store(&plan.datablocks[0], &cancel, &Progress::none()).await.unwrap();
        world.store.insert(world.tar(0), "other", None);
        if lost {
            world.store.remove(&world.tar(0));
        }
        let error = run.verify(stored, &cancel, &Progress::none()).await.unwrap_err();
        assert!(
            matches!(error, ArchiveError::Verify(VerifyError::Replaced { .. } | VerifyError::Missing { .. })),
            "{error}"
        );
    }
}

#[tokio::test]
async fn cancellation_ends_a_transfer_and_leaves_no_upload_open() {
    let world = World::with(&[("huge.mrc", bytes(29 * MIB))]);
    let run = world.begin().await;
    let plan = planned(&run).await.unwrap();
    let cancel = CancellationToken::new();
    let token = cancel.clone();
    let progress = Progress::new(move |update| {
        if update.bytes > 12 * MIB as u64 {
            token.cancel();
        }
    });
    let error = run.store(&plan.datablocks[0], &cancel, &progress).await.unwrap_err();
    assert!(error.is_cancelled(), "{error:?}");
    assert_eq!((world.store.open_uploads(), world.archive_keys().len()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn offline_uploads_are_restored_before_they_are_read() {
    let world = World::small();
    let glacier = StorageClass::new("GLACIER");
    world.store.insert(world.landed("a.txt"), "alpha", Some(glacier));
    world.store.restore_takes(5);
    let begun = tokio::time::Instant::now();
    archived(&world.begin().await).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1 + 2 + 4 + 8));
    assert_eq!(world.store.calls().iter().filter(|call| call.starts_with("request_restore")).count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_restore_that_never_ends_is_given_up_and_a_cancelled_one_at_once() {
    let mut world = World::small();
    world.settings.restore.deadline = Duration::from_hours(1);
    world.store.insert(world.landed("a.txt"), "alpha", Some(StorageClass::new("DEEP_ARCHIVE")));
    world.store.restore_takes(u32::MAX);
    let run = world.begin().await;
    let error = planned(&run).await.unwrap_err();
    assert!(matches!(&error, ArchiveError::Restore(_)) && error.is_transient(), "{error:?}");

    let cancel = CancellationToken::new();
    cancel.cancel();
    let landed = run.landed().await.unwrap();
    let error = run.make_readable(&landed, &cancel, &Progress::none()).await.unwrap_err();
    assert!(error.is_cancelled(), "{error:?}");
}

#[tokio::test]
async fn unclaimed_files_are_archived_and_folder_markers_are_not() {
    let world = World::small();
    world.store.insert(world.landed("extra"), "x", None);
    world.store.insert(world.landed("b/"), "", None);
    let run = world.begin().await;
    let plan = planned(&run).await.unwrap();
    assert_eq!((plan.files(), plan.bytes()), (4, 3006));
    assert!(matches!(plan.warnings.as_slice(), [Warning::FolderMarker { .. }, Warning::Unclaimed { .. }]));
}

#[tokio::test]
async fn progress_ends_at_its_totals() {
    let world = World::small();
    let run = world.begin().await;
    let plan = planned(&run).await.unwrap();
    let seen = Arc::new((AtomicU64::new(0), AtomicU64::new(0)));
    let progress = {
        let seen = Arc::clone(&seen);
        Progress::new(move |update| {
            assert_eq!((update.total_bytes, update.total_files), (3005, 3));
            seen.0.store(update.bytes, Ordering::Relaxed);
            seen.1.store(update.files, Ordering::Relaxed);
        })
    };
    run.store(&plan.datablocks[0], &CancellationToken::new(), &progress).await.unwrap();
    assert_eq!((seen.0.load(Ordering::Relaxed), seen.1.load(Ordering::Relaxed)), (3005, 3));
}

#[path = "run_safety_tests.rs"]
mod safety;
