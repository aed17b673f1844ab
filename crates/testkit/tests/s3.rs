//! The S3 server against Amazon's own client.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::{
    BehaviorVersion, Credentials, Region, RequestChecksumCalculation, retry::RetryConfig,
};
use aws_sdk_s3::error::ProvideErrorMetadata;
use aws_sdk_s3::presigning::PresigningConfig;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{
    ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart, GlacierJobParameters, RestoreRequest,
    StorageClass, Tier,
};
use testkit::faults::Fault;
use testkit::s3::{Options, Restore, S3Server};

const BUCKET: &str = "dev.landingzone";
const MIB: usize = 1024 * 1024;

async fn server(restore: Restore) -> (S3Server, Client) {
    let options = Options { buckets: vec![BUCKET.to_owned()], restore, ..Options::default() };
    let server = S3Server::start(options).await.unwrap();
    let client = client(&server, server.secret_key());
    (server, client)
}

fn client(server: &S3Server, secret: &str) -> Client {
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .credentials_provider(Credentials::new(server.access_key(), secret, None, None, "test"))
        .region(Region::new("eu-west-1"))
        .endpoint_url(server.endpoint())
        .force_path_style(true)
        .retry_config(RetryConfig::disabled())
        .request_checksum_calculation(RequestChecksumCalculation::WhenSupported)
        .build();
    Client::from_conf(config)
}

async fn read(client: &Client, key: &str) -> Vec<u8> {
    let object = client.get_object().bucket(BUCKET).key(key).send().await.unwrap();
    object.body.collect().await.unwrap().to_vec()
}

/// A multipart upload with the given parts; gives the object's `ETag`.
async fn upload(client: &Client, key: &str, class: Option<StorageClass>, parts: &[Vec<u8>]) -> String {
    let created = client.create_multipart_upload().bucket(BUCKET).key(key).set_storage_class(class);
    let id = created.send().await.unwrap().upload_id.unwrap();
    let mut completed = CompletedMultipartUpload::builder();
    for (number, bytes) in (1..).zip(parts) {
        let part = client.upload_part().bucket(BUCKET).key(key).upload_id(&id).part_number(number);
        let part = part.body(ByteStream::from(bytes.clone())).send().await.unwrap();
        let part = CompletedPart::builder().part_number(number).e_tag(part.e_tag.unwrap()).build();
        completed = completed.parts(part);
    }
    let complete = client.complete_multipart_upload().bucket(BUCKET).key(key).upload_id(&id);
    complete.multipart_upload(completed.build()).send().await.unwrap().e_tag.unwrap()
}

fn restore(days: i32) -> RestoreRequest {
    let tier = GlacierJobParameters::builder().tier(Tier::Expedited).build().unwrap();
    RestoreRequest::builder().days(days).glacier_job_parameters(tier).build()
}

#[tokio::test]
async fn odd_keys_keep_their_bytes_and_appear_in_pages() {
    let (server, client) = server(Restore::Heads(0)).await;
    let long =
        format!("openem-network/datasets/20.500.12345/x/raw_files/{}/{}", "d".repeat(250), "f".repeat(400));
    let keys = ["a b+c&d.txt", "ünïcödé-Ω.dat", "dir", "dir/inner", "dir//twice", "with%20percent", &long];
    for key in keys {
        let put = client.put_object().bucket(BUCKET).key(key).body(ByteStream::from(key.as_bytes().to_vec()));
        put.send().await.unwrap();
    }
    for key in keys {
        assert_eq!(read(&client, key).await, key.as_bytes());
    }
    let mut pages = client.list_objects_v2().bucket(BUCKET).max_keys(2).into_paginator().send();
    let mut listed = Vec::new();
    while let Some(page) = pages.next().await {
        listed.extend(page.unwrap().contents.unwrap_or_default());
    }
    let mut expected = keys.to_vec();
    expected.sort_unstable();
    assert_eq!(listed.iter().map(|object| object.key().unwrap()).collect::<Vec<_>>(), expected);
    let head = client.head_object().bucket(BUCKET).key(&long).send().await.unwrap();
    let entry = listed.iter().find(|object| object.key() == Some(&long)).unwrap();
    assert_eq!(entry.e_tag(), head.e_tag());
    assert_eq!(entry.size(), head.content_length());
    client.delete_object().bucket(BUCKET).key(&long).send().await.unwrap();
    assert_eq!(server.store().objects(BUCKET, "").unwrap().len(), keys.len() - 1);
}

#[tokio::test]
async fn a_multipart_upload_has_the_etag_of_its_parts_and_reads_in_ranges() {
    let (server, client) = server(Restore::Heads(0)).await;
    let parts = [vec![1_u8; 5 * MIB], vec![2; 5 * MIB + 7], vec![3; 11]];
    let etag = upload(&client, "big.tar", None, &parts).await;
    // md5(md5(p1) + md5(p2) + md5(p3)), computed with md5sum.
    assert_eq!(etag, "\"a1e2cde0343aebbaceedc30c93d7a87c-3\"");
    let whole = parts.concat();
    assert_eq!(read(&client, "big.tar").await, whole);
    let from = 5 * MIB - 3;
    let range = format!("bytes={from}-{}", from + 9);
    let reply = client.get_object().bucket(BUCKET).key("big.tar").range(range).send().await.unwrap();
    assert_eq!(reply.content_range(), Some(format!("bytes {from}-{}/{}", from + 9, whole.len()).as_str()));
    assert_eq!(reply.body.collect().await.unwrap().to_vec(), whole[from..from + 10]);
    let part = client.get_object().bucket(BUCKET).key("big.tar").part_number(3).send().await.unwrap();
    assert_eq!(part.body.collect().await.unwrap().to_vec(), parts[2]);
    let beyond = client.get_object().bucket(BUCKET).key("big.tar").range("bytes=99999999-").send().await;
    assert_eq!(beyond.unwrap_err().code(), Some("InvalidRange"));
    assert_eq!(server.calls_of("UploadPart"), 3);
}

#[tokio::test]
async fn uploads_are_listed_until_they_end_and_bad_ones_are_refused() {
    let (server, client) = server(Restore::Heads(0)).await;
    let create = || client.create_multipart_upload().bucket(BUCKET).key("t.tar").send();
    let id = create().await.unwrap().upload_id.unwrap();
    let other = create().await.unwrap().upload_id.unwrap();
    let mut tags = Vec::new();
    for number in [1, 2] {
        let part = client.upload_part().bucket(BUCKET).key("t.tar").upload_id(&id).part_number(number);
        tags.push(part.body(ByteStream::from_static(b"small")).send().await.unwrap().e_tag.unwrap());
    }
    let listed = client.list_multipart_uploads().bucket(BUCKET).send().await.unwrap();
    assert_eq!(listed.uploads().len(), 2);
    let parts = client.list_parts().bucket(BUCKET).key("t.tar").upload_id(&id).send().await.unwrap();
    assert_eq!(parts.parts().iter().map(|part| part.size().unwrap()).collect::<Vec<_>>(), [5, 5]);

    for (numbers, tag, code) in [
        (vec![1, 2], &tags[0], "EntityTooSmall"),
        (vec![2, 1], &tags[0], "InvalidPartOrder"),
        (vec![1, 3], &tags[0], "InvalidPart"),
        (vec![1], &"\"0\"".to_owned(), "InvalidPart"),
    ] {
        let part = |number| CompletedPart::builder().part_number(number).e_tag(tag).build();
        let parts =
            CompletedMultipartUpload::builder().set_parts(Some(numbers.into_iter().map(part).collect()));
        let complete = client.complete_multipart_upload().bucket(BUCKET).key("t.tar").upload_id(&id);
        let error = complete.multipart_upload(parts.build()).send().await.unwrap_err();
        assert_eq!(error.code(), Some(code));
    }
    for id in [&id, &other] {
        client.abort_multipart_upload().bucket(BUCKET).key("t.tar").upload_id(id).send().await.unwrap();
    }
    assert!(server.store().uploads(BUCKET).unwrap().is_empty());
    let gone = client.list_parts().bucket(BUCKET).key("t.tar").upload_id(&id).send().await.unwrap_err();
    assert_eq!(gone.code(), Some("NoSuchUpload"));
}

#[tokio::test]
async fn an_archived_object_is_read_after_its_restore_only() {
    let (server, client) = server(Restore::Heads(2)).await;
    upload(&client, "a.tar", Some(StorageClass::Glacier), &[b"tar".to_vec()]).await;
    let head = || client.head_object().bucket(BUCKET).key("a.tar").send();
    let get = || client.get_object().bucket(BUCKET).key("a.tar").send();
    assert_eq!(head().await.unwrap().storage_class(), Some(&StorageClass::Glacier));
    assert_eq!(get().await.unwrap_err().code(), Some("InvalidObjectState"));

    let ask = || client.restore_object().bucket(BUCKET).key("a.tar").restore_request(restore(7)).send();
    ask().await.unwrap();
    assert_eq!(ask().await.unwrap_err().code(), Some("RestoreAlreadyInProgress"));
    for _ in 0..2 {
        assert_eq!(head().await.unwrap().restore(), Some("ongoing-request=\"true\""));
        assert_eq!(server.store().objects(BUCKET, "a.tar").unwrap()[0].class, "GLACIER");
    }
    assert_eq!(get().await.unwrap().body.collect().await.unwrap().to_vec(), b"tar");
    let done = head().await.unwrap();
    assert!(done.restore().unwrap().starts_with("ongoing-request=\"false\", expiry-date=\""), "{done:?}");
    ask().await.unwrap();
    let statuses: Vec<_> = server
        .calls()
        .into_iter()
        .filter(|call| call.operation == "RestoreObject")
        .map(|call| call.status)
        .collect();
    assert_eq!(statuses, [Some(202), Some(409), Some(200)]);

    server.store().expire_restores();
    assert_eq!(get().await.unwrap_err().code(), Some("InvalidObjectState"));
    client.put_object().bucket(BUCKET).key("plain").body(ByteStream::from_static(b"x")).send().await.unwrap();
    let plain = client.restore_object().bucket(BUCKET).key("plain").restore_request(restore(1)).send().await;
    assert_eq!(plain.unwrap_err().code(), Some("InvalidObjectState"));
}

#[tokio::test]
async fn wrong_digests_and_keys_are_refused_and_store_nothing() {
    let (server, client) = server(Restore::Heads(0)).await;
    let put = || client.put_object().bucket(BUCKET).key("k").body(ByteStream::from_static(b"bytes"));
    let wrong_md5 = put().content_md5("AAAAAAAAAAAAAAAAAAAAAA==").send().await.unwrap_err();
    assert_eq!(wrong_md5.code(), Some("BadDigest"));
    let wrong_sum = put().checksum_crc32("AAAAAA==").send().await.unwrap_err();
    assert_eq!(wrong_sum.code(), Some("BadDigest"));
    assert!(server.store().objects(BUCKET, "").unwrap().is_empty());

    let stranger = super_client(&server);
    let refused = stranger.head_bucket().bucket(BUCKET).send().await.unwrap_err();
    assert_eq!(refused.raw_response().unwrap().status().as_u16(), 403);
    for algorithm in [ChecksumAlgorithm::Crc32C, ChecksumAlgorithm::Crc64Nvme, ChecksumAlgorithm::Sha256] {
        put().checksum_algorithm(algorithm).send().await.unwrap();
    }
    let unsigned = reqwest::get(format!("{}/{BUCKET}/k", server.endpoint())).await.unwrap();
    assert_eq!(unsigned.status(), 403);
}

fn super_client(server: &S3Server) -> Client {
    client(server, "another secret")
}

#[tokio::test]
async fn a_presigned_url_reads_until_it_is_tampered_with() {
    let (server, client) = server(Restore::Heads(0)).await;
    server.store().put(BUCKET, "a b/ü.tar", b"content").unwrap();
    let hour = PresigningConfig::expires_in(Duration::from_hours(1)).unwrap();
    let url = client.get_object().bucket(BUCKET).key("a b/ü.tar").presigned(hour).await.unwrap();
    let reply = reqwest::get(url.uri()).await.unwrap();
    assert_eq!(reply.text().await.unwrap(), "content");
    let resumed = reqwest::Client::new().get(url.uri()).header("range", "bytes=3-").send().await.unwrap();
    assert_eq!((resumed.status().as_u16(), resumed.text().await.unwrap().as_str()), (206, "tent"));
    let tampered = reqwest::get(url.uri().replace("3600", "7200")).await.unwrap();
    assert_eq!(tampered.status(), 403);
}

#[tokio::test]
async fn conditions_guard_reads_and_writes() {
    let (server, client) = server(Restore::Heads(0)).await;
    server.store().put(BUCKET, "k", b"one").unwrap();
    let put = || client.put_object().bucket(BUCKET).key("k").body(ByteStream::from_static(b"two"));
    let refused = put().if_none_match("*").send().await.unwrap_err();
    assert_eq!(refused.code(), Some("PreconditionFailed"));
    let etag = format!("\"{}\"", server.store().objects(BUCKET, "k").unwrap()[0].etag);
    put().if_match(&etag).send().await.unwrap();
    let changed = client.get_object().bucket(BUCKET).key("k").if_match(&etag).send().await.unwrap_err();
    assert_eq!(changed.code(), Some("PreconditionFailed"));
}

#[tokio::test]
async fn faults_strike_before_or_after_the_effect() {
    let (server, client) = server(Restore::Heads(0)).await;
    let put = |key: &str| {
        client.put_object().bucket(BUCKET).key(key).body(ByteStream::from(vec![7; 3 * MIB])).send()
    };
    server.faults().add(Fault::on("PutObject").error("SlowDown", 503));
    assert_eq!(put("before").await.unwrap_err().code(), Some("SlowDown"));
    server
        .faults()
        .add(Fault::on("PutObject").containing("after").error("InternalError", 500).after_effect());
    assert_eq!(put("after").await.unwrap_err().code(), Some("InternalError"));
    server.faults().add(Fault::on("PutObject").drop_connection().after_effect());
    assert!(put("lost").await.unwrap_err().raw_response().is_none());
    server.faults().add(Fault::on("DeleteObject").drop_connection());
    assert!(client.delete_object().bucket(BUCKET).key("lost").send().await.is_err());
    let keys: Vec<_> =
        server.store().objects(BUCKET, "").unwrap().into_iter().map(|object| object.key).collect();
    assert_eq!(keys, ["after", "lost"]);
    let statuses: Vec<_> = server.calls().into_iter().map(|call| call.status).collect();
    assert_eq!(statuses, [Some(503), Some(500), None, None]);
}

#[tokio::test]
async fn a_corrupted_object_keeps_size_and_etag() {
    let (server, client) = server(Restore::Heads(0)).await;
    server.store().put(BUCKET, "k", b"12345").unwrap();
    server.store().corrupt(BUCKET, "k").unwrap();
    let reply = client.get_object().bucket(BUCKET).key("k").send().await.unwrap();
    assert_eq!(reply.e_tag(), Some("\"827ccb0eea8a706c4c34a16891f84e7b\""));
    assert_eq!(reply.body.collect().await.unwrap().to_vec(), [b'1', b'2', !b'3', b'4', b'5']);
}

#[tokio::test]
async fn a_store_outlives_its_server() {
    let dir = tempfile::tempdir().unwrap();
    let options = || Options {
        data: Some(dir.path().to_owned()),
        buckets: vec![BUCKET.to_owned()],
        ..Options::default()
    };
    let first = S3Server::start(options()).await.unwrap();
    let etag =
        upload(&client(&first, first.secret_key()), "ü/k", Some(StorageClass::DeepArchive), &[vec![1; 9]])
            .await;
    first.stop().await;
    let second = S3Server::start(options()).await.unwrap();
    let object = second.store().objects(BUCKET, "").unwrap().remove(0);
    assert_eq!((object.key.as_str(), object.class.as_str()), ("ü/k", "DEEP_ARCHIVE"));
    assert_eq!(format!("\"{}\"", object.etag), etag);
    assert_eq!(second.store().get(BUCKET, "ü/k").unwrap(), [1; 9]);
}
