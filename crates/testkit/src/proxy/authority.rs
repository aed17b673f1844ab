//! A private certificate authority that lives as long as one test.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};

/// Files of a server certificate and of the authority that signed it.
#[derive(Debug)]
pub(super) struct Certificate {
    /// The authority's certificate: what clients have to trust.
    pub(super) authority: PathBuf,
    /// The server's certificate.
    pub(super) chain: PathBuf,
    /// Its key.
    pub(super) key: PathBuf,
}

/// Files of an engine that wants to see its clients' certificates, and of such a client.
#[derive(Debug)]
pub(super) struct Mutual {
    /// The server's side.
    pub(super) server: Certificate,
    /// A directory with the client's `ca.pem`, `cert.pem` and `key.pem`.
    pub(super) client: PathBuf,
}

/// Makes an authority and a certificate for `host` in `dir`.
pub(super) fn certify(host: IpAddr, dir: &Path) -> Result<Certificate> {
    Authority::new()?.certify(host, dir)
}

/// Makes an authority and certificates for a server at `host` and for a client of it in `dir`.
pub(super) fn certify_mutually(host: IpAddr, dir: &Path) -> Result<Mutual> {
    let authority = Authority::new()?;
    let server = authority.certify(host, dir)?;
    let client = dir.join("client");
    std::fs::create_dir(&client).context("failed to make a directory for the client")?;
    write(&client.join("ca.pem"), &authority.certificate)?;
    let (certificate, key) = authority.sign("client")?;
    write(&client.join("cert.pem"), &certificate)?;
    write(&client.join("key.pem"), &key)?;
    Ok(Mutual { server, client })
}

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

impl Authority {
    fn new() -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new()).context("failed to describe an authority")?;
        params.distinguished_name.push(DnType::CommonName, "Authority of one test");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().context("failed to make the authority's key")?;
        let certificate = params.self_signed(&key).context("failed to make the authority's certificate")?;
        Ok(Self { issuer: Issuer::new(params, key), certificate: certificate.pem() })
    }

    /// A certificate for a name or address, and its key.
    fn sign(&self, name: &str) -> Result<(String, String)> {
        let params =
            CertificateParams::new(vec![name.to_owned()]).context("failed to describe a certificate")?;
        let key = KeyPair::generate().context("failed to make a key")?;
        let certificate = params.signed_by(&key, &self.issuer).context("failed to sign a certificate")?;
        Ok((certificate.pem(), key.serialize_pem()))
    }

    fn certify(&self, host: IpAddr, dir: &Path) -> Result<Certificate> {
        let files = Certificate {
            authority: dir.join("authority.pem"),
            chain: dir.join("certificate.pem"),
            key: dir.join("key.pem"),
        };
        let (certificate, key) = self.sign(&host.to_string())?;
        write(&files.authority, &self.certificate)?;
        write(&files.chain, &certificate)?;
        write(&files.key, &key)?;
        Ok(files)
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("failed to write {}", path.display()))
}
