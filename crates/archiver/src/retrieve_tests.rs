//! Retrieving against the store and catalogue in memory.

use super::*;
use crate::fake::{MemoryCatalogue, MemoryStore};
use crate::{JobResult, StorageClass, download_script};

fn world() -> (Arc<MemoryStore>, Arc<MemoryCatalogue>, Retriever, DatasetId) {
    let (store, catalogue) = (Arc::new(MemoryStore::default()), Arc::new(MemoryCatalogue::default()));
    let retriever = Retriever::new(
        Arc::clone(&store) as _,
        Arc::clone(&catalogue) as _,
        "dev.archive".parse().unwrap(),
        RestoreSettings::default(),
        Duration::from_hours(168),
    );
    (store, catalogue, retriever, "20.500/X".parse().unwrap())
}

fn tar(dataset: &DatasetId, index: usize) -> ObjectAddress {
    ObjectAddress::new(&"dev.archive".parse().unwrap(), &dataset.tar_key(index))
}

#[tokio::test]
async fn datablocks_come_in_the_order_of_their_numbers() {
    let (_, catalogue, retriever, dataset) = world();
    for index in [10, 2, 0, 1] {
        catalogue.add_datablock(&dataset, &dataset.tar_key(index), 1);
    }
    let names: Vec<_> =
        retriever.datablocks(&dataset).await.unwrap().iter().map(|b| b.name().to_owned()).collect();
    assert_eq!(names, ["20.500-X_0.tar", "20.500-X_1.tar", "20.500-X_2.tar", "20.500-X_10.tar"]);
}

#[tokio::test]
async fn a_dataset_without_datablocks_is_an_error() {
    let (_, _, retriever, dataset) = world();
    let error = retriever.datablocks(&dataset).await.unwrap_err();
    assert_eq!(error.to_string(), "retrieve 20.500/X: the catalogue has no datablocks of it");
}

#[tokio::test]
async fn archive_ids_that_name_no_file_are_refused() {
    for bad in ["a/b/", "a/..", "a/b\nc.tar"] {
        let (_, catalogue, retriever, dataset) = world();
        catalogue.add_datablock(&dataset, &ObjectKey::new(bad), 1);
        assert!(matches!(retriever.datablocks(&dataset).await, Err(RetrieveError::Name { .. })), "{bad:?}");
    }
}

#[tokio::test]
async fn records_that_lead_to_the_data_of_others_are_refused() {
    let other: DatasetId = "20.500/X2".parse().unwrap();
    let inside = |path| ObjectKey::new(format!("openem-network/datasets/20.500/X/datablocks/{path}"));
    for foreign in [other.tar_key(0), inside("../../X2/datablocks/a.tar"), ObjectKey::new("a.tar")] {
        let (_, catalogue, retriever, dataset) = world();
        catalogue.add_datablock(&dataset, &dataset.tar_key(0), 1);
        catalogue.add_datablock(&dataset, &foreign, 1);
        let error = retriever.datablocks(&dataset).await.unwrap_err();
        assert!(matches!(error, RetrieveError::Foreign { .. }), "{foreign}: {error}");
    }
}

#[tokio::test(start_paused = true)]
async fn links_are_made_only_when_every_tar_can_be_read() {
    let (store, catalogue, retriever, dataset) = world();
    for index in 0..2 {
        catalogue.add_datablock(&dataset, &dataset.tar_key(index), 4);
        store.insert(tar(&dataset, index), "tar!", Some(StorageClass::new("GLACIER")));
    }
    store.restore_takes(3);
    let datablocks = retriever.datablocks(&dataset).await.unwrap();
    let begun = tokio::time::Instant::now();
    let readable = retriever
        .await_readable(&dataset, &datablocks, &CancellationToken::new(), &Progress::none())
        .await
        .unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1 + 2));
    let requests = store.calls().iter().filter(|call| call.starts_with("request_restore")).count();
    assert_eq!(requests, 2);

    let links = retriever.publish(&readable).await.unwrap();
    let result = JobResult { download_script: download_script(&links), result: links.clone() };
    let json = serde_json::to_value(&result).unwrap();
    assert_eq!(
        json["result"][1],
        serde_json::json!({
            "datasetId": "20.500/X",
            "name": "20.500-X_1.tar",
            "size": 0,
            "archiveId": "openem-network/datasets/20.500/X/datablocks/20.500-X_1.tar",
            "url": "https://s3.example/dev.archive/openem-network/datasets/20.500/X/datablocks/20.500-X_1.tar?expires=604800",
        })
    );
    assert!(json["downloadScript"].is_string());
    assert_eq!(links[1].artifact_key(), "20-500-x-1");
    assert!(!format!("{links:?} {result:?}").contains("expires"));
}

#[tokio::test]
async fn a_missing_or_resized_tar_is_not_retrieved() {
    let (store, catalogue, retriever, dataset) = world();
    catalogue.add_datablock(&dataset, &dataset.tar_key(0), 4);
    let datablocks = retriever.datablocks(&dataset).await.unwrap();
    let (cancel, progress) = (CancellationToken::new(), Progress::none());
    let error = retriever.await_readable(&dataset, &datablocks, &cancel, &progress).await.unwrap_err();
    assert!(matches!(error, RetrieveError::Restore(RestoreError::Missing { .. })), "{error}");

    store.insert(tar(&dataset, 0), "shorter or longer", None);
    let error = retriever.await_readable(&dataset, &datablocks, &cancel, &progress).await.unwrap_err();
    assert!(matches!(error, RetrieveError::Size { registered: 4, found: 17, .. }), "{error}");
}
