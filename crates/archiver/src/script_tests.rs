//! The script is text, and the text runs.

use std::path::Path;
use std::process::{Command, Output};

use super::*;
use crate::{DatasetId, ObjectKey, PresignedUrl, tarball};

fn datablock(dataset: &str, name: &str, url: String, packed_size: u64) -> RetrievedDatablock {
    RetrievedDatablock {
        dataset_id: dataset.parse::<DatasetId>().unwrap(),
        name: name.to_owned(),
        size: 1,
        archive_id: ObjectKey::new(format!("x/{name}")),
        url: PresignedUrl::new(url),
        packed_size,
    }
}

fn tar_of(path: &str, content: &[u8]) -> Vec<u8> {
    let size = content.len() as u64;
    [tarball::head(path, size, 0).as_slice(), content, tarball::padding(size), &tarball::TRAILER].concat()
}

fn run(script: &str, folder: &Path) -> Output {
    Command::new("bash").arg("-c").arg(script).current_dir(folder).output().unwrap()
}

#[test]
fn each_datablock_is_one_quoted_line() {
    let script = download_script(&[
        datablock("20.500/x", "20.500-x_0.tar", "https://s3.example/b/k?a=1&b='2'".to_owned(), 10_240),
        datablock("20.500/x", "20.500-x_1.tar", "https://s3.example/b/l".to_owned(), 512),
    ]);
    insta::assert_snapshot!(script.strip_prefix(HEAD).unwrap(), @r"

    # Dataset 20.500/x
    datablock '20.500-x_0.tar' 10240 '.' 'https://s3.example/b/k?a=1&b='\''2'\'''
    datablock '20.500-x_1.tar' 512 '.' 'https://s3.example/b/l'

    echo 'Downloaded and unpacked all datablocks.'
    ");
}

#[test]
fn hostile_names_are_downloaded_and_unpacked_literally() {
    let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let names = ["-rf $(touch pwned) `id`; 'x\".tar", "a b:c*.tar", "ünï.tar"];
    let mut datablocks = Vec::new();
    for (index, name) in names.iter().enumerate() {
        let tar = tar_of(&format!("file {index}"), name.as_bytes());
        let file = source.path().join(format!("{index}.tar"));
        std::fs::write(&file, &tar).unwrap();
        datablocks.push(datablock(
            "20.500/$(touch pwned)'",
            name,
            format!("file://{}", file.display()),
            tar.len() as u64,
        ));
    }
    let output = run(&download_script(&datablocks), target.path());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for (index, name) in names.iter().enumerate() {
        assert_eq!(std::fs::read(target.path().join(format!("file {index}"))).unwrap(), name.as_bytes());
        assert!(target.path().join(name).exists());
    }
    assert!(!target.path().join("pwned").exists());
}

#[test]
fn several_datasets_do_not_overwrite_each_other() {
    let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut datablocks = Vec::new();
    for dataset in ["p/1", "p/2"] {
        let tar = tar_of("same", dataset.as_bytes());
        let file = source.path().join(dataset.replace('/', "-"));
        std::fs::write(&file, &tar).unwrap();
        datablocks.push(datablock(
            dataset,
            &format!("{}_0.tar", dataset.replace('/', "-")),
            format!("file://{}", file.display()),
            tar.len() as u64,
        ));
    }
    assert!(run(&download_script(&datablocks), target.path()).status.success());
    assert_eq!(std::fs::read(target.path().join("p-1/same")).unwrap(), b"p/1");
    assert_eq!(std::fs::read(target.path().join("p-2/same")).unwrap(), b"p/2");
}

#[test]
fn datablocks_of_one_name_are_not_taken_for_each_other() {
    let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut datablocks = Vec::new();
    for (dataset, file) in [("p/1", "slash"), ("p-1", "dash!")] {
        let tar = tar_of("same", file.as_bytes());
        let from = source.path().join(file);
        std::fs::write(&from, &tar).unwrap();
        let url = format!("file://{}", from.display());
        datablocks.push(datablock(dataset, "p-1_0.tar", url, tar.len() as u64));
    }
    let output = run(&download_script(&datablocks), target.path());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(std::fs::read(target.path().join("p-1/same")).unwrap(), b"dash!");
    assert_eq!(std::fs::read(target.path().join("2-p-1/same")).unwrap(), b"slash");
}

#[test]
fn a_truncated_or_missing_download_fails_and_a_second_run_resumes() {
    let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let tar = tar_of("file", &[7; 5000]);
    let file = source.path().join("x");
    let script =
        download_script(&[datablock("p/1", "x.tar", format!("file://{}", file.display()), tar.len() as u64)]);

    let output = run(&script, target.path());
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("x.tar was not downloaded"));

    std::fs::write(&file, &tar[..1000]).unwrap();
    let output = run(&script, target.path());
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("has 1000 bytes instead of"));

    std::fs::write(&file, &tar).unwrap();
    let output = run(&script, target.path());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(std::fs::read(target.path().join("file")).unwrap(), [7; 5000]);
    // Nothing to download any more.
    std::fs::remove_file(&file).unwrap();
    assert!(run(&script, target.path()).status.success());
}
