use super::{Variable, load};
use crate::{Environment, Error};

fn read(content: &str, environment: &[(&str, &str)]) -> Result<Vec<Variable>, Error> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vars.toml");
    std::fs::write(&path, content).unwrap();
    load(&path, &environment.iter().copied().collect::<Environment>())
}

fn value(variables: &[Variable], name: &str) -> Option<String> {
    variables.iter().find(|variable| variable.name == name).map(|variable| variable.value.clone())
}

fn refusal(content: &str, environment: &[(&str, &str)]) -> String {
    let error = read(content, environment).unwrap_err();
    let text = error.to_string();
    // The directory differs from run to run.
    text.rsplit_once("/vars.toml").map_or(text.clone(), |(_, rest)| format!("vars.toml{rest}"))
}

#[test]
fn sections_group_but_do_not_prefix_and_every_value_is_text() {
    let variables = read(
        r#"
        SCICAT_ENDPOINT = "https://scicat.example"
        [archiver]
        ARCHIVER_TARGET_SIZE_GB = 500
        [s3]
        S3_REGION = "eu-west-1" # a comment
        [lts]
        LTS_FREE_SPACE_PERCENTAGE = 2.5
        "#,
        &[],
    )
    .unwrap();
    let lines: Vec<_> = variables.iter().map(|v| format!("{}={}", v.name, v.value)).collect();
    insta::assert_snapshot!(lines.join("\n"), @r"
    archiver_target_size_gb=500
    archiver_num_workers=4
    lts_free_space_percentage=2.5
    s3_region=eu-west-1
    s3_url_expiration_days=7
    s3_archival_storage_class=GLACIER
    scicat_endpoint=https://scicat.example
    ");
}

#[test]
fn the_environment_overrides_unless_it_is_empty() {
    let file = "[s3]\nS3_REGION = 'file'\nS3_ENDPOINT = 'file'";
    let environment = [("S3_REGION", "environment"), ("S3_ENDPOINT", ""), ("S3_EXTERNAL_ENDPOINT", "host:1")];
    let variables = read(file, &environment).unwrap();
    assert_eq!(value(&variables, "s3_region").as_deref(), Some("environment"));
    assert_eq!(value(&variables, "s3_endpoint").as_deref(), Some("file"));
    assert_eq!(value(&variables, "s3_external_endpoint").as_deref(), Some("host:1"));
}

#[test]
fn older_files_speak_of_minio() {
    let variables = read("[minio]\nMINIO_REGION = 'r'\nMINIO_RETRIEVAL_BUCKET = 'b'", &[]).unwrap();
    assert_eq!(value(&variables, "s3_region").as_deref(), Some("r"));
    assert_eq!(value(&variables, "s3_retrieval_bucket").as_deref(), Some("b"));
    insta::assert_snapshot!(
        refusal("[minio]\nMINIO_REGION = 'r'\n[s3]\nS3_REGION = 'r'", &[]),
        @"vars.toml: minio.MINIO_REGION"
    );
}

#[test]
fn an_unknown_key_names_file_key_and_the_nearest() {
    let error = read("[s3]\nS3_REGOIN = 'x'", &[]).unwrap_err();
    assert_eq!(error.hint().unwrap(), "the nearest known key is S3_REGION");
    insta::assert_snapshot!(refusal("[s3]\nS3_REGOIN = 'x'", &[]), @"vars.toml: s3.S3_REGOIN: there is no such key");
}

#[test]
fn values_of_the_wrong_form_are_refused() {
    insta::assert_snapshot!(refusal("ARCHIVER_TARGET_SIZE_GB = 0", &[]), @r#"vars.toml: ARCHIVER_TARGET_SIZE_GB: it must be a number above 0, not "0""#);
    insta::assert_snapshot!(refusal("S3_URL_EXPIRATION_DAYS = 8", &[]), @r#"vars.toml: S3_URL_EXPIRATION_DAYS: it must be a whole number from 1 to 7, not "8""#);
    insta::assert_snapshot!(refusal("LTS_FREE_SPACE_PERCENTAGE = 101", &[]), @r#"vars.toml: LTS_FREE_SPACE_PERCENTAGE: it must be a number from 0 to 100, not "101""#);
    insta::assert_snapshot!(refusal("S3_REGION = true", &[]), @"vars.toml: S3_REGION: it must be text or a number, not true or false");
    insta::assert_snapshot!(refusal("", &[("ARCHIVER_NUM_WORKERS", "many")]), @r#"use the environment variable ARCHIVER_NUM_WORKERS: it must be a whole number from 1 to 1024, not "many""#);
}

/// What the Python bootstrap registers from its `vars_dev.toml`, apart from the empty values.
#[test]
fn the_dev_file_gives_what_the_python_bootstrap_registered() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../prefect/vars_dev.toml");
    let variables = load(&path, &Environment::default()).unwrap();
    let expected = [
        ("archiver_num_workers", "4"),
        ("archiver_scratch_folder", "/storage"),
        ("archiver_target_size_gb", "20"),
        ("s3_archival_bucket", "dev.archival"),
        ("s3_landingzone_bucket", "dev.landingzone"),
        ("s3_region", "eu-west-1"),
        ("s3_url_expiration_days", "7"),
        ("scicat_api_prefix", "/api/v3"),
        ("scicat_datasets_api_prefix", "/api/v3"),
        ("scicat_endpoint", "https://scopem-openem2.ethz.ch/scicat/backend"),
        ("scicat_jobs_api_prefix", "/api/v3"),
    ];
    for (name, text) in expected {
        assert_eq!(value(&variables, name).as_deref(), Some(text), "{name}");
    }
    assert_eq!(value(&variables, "s3_archival_storage_class").as_deref(), Some("GLACIER"));
    assert_eq!(variables.len(), expected.len() + 1);
}
