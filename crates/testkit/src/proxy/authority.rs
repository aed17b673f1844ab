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

/// Makes an authority and a certificate for `host` in `dir`.
pub(super) fn certify(host: IpAddr, dir: &Path) -> Result<Certificate> {
    let mut params = CertificateParams::new(Vec::new()).context("failed to describe an authority")?;
    params.distinguished_name.push(DnType::CommonName, "Authority of one test");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().context("failed to make the authority's key")?;
    let authority = params.self_signed(&key).context("failed to make the authority's certificate")?;
    let issuer = Issuer::new(params, key);

    let params =
        CertificateParams::new(vec![host.to_string()]).context("failed to describe a certificate")?;
    let key = KeyPair::generate().context("failed to make a key")?;
    let certificate = params.signed_by(&key, &issuer).context("failed to sign a certificate")?;

    let write = |name: &str, text: String| {
        let path = dir.join(name);
        std::fs::write(&path, text).with_context(|| format!("failed to write {}", path.display()))?;
        anyhow::Ok(path)
    };
    Ok(Certificate {
        authority: write("authority.pem", authority.pem())?,
        chain: write("certificate.pem", certificate.pem())?,
        key: write("key.pem", key.serialize_pem())?,
    })
}
