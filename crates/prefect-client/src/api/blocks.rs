//! Block documents, secrets above all.

use prefect_api::id::BlockDocumentId;
use prefect_api::record::{BlockDocument, BlockSchema, BlockType};
use reqwest::Method;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde_json::json;

use crate::error::Error;
use crate::http::{Call, Client};

/// The slug of the block type that holds one secret text.
const SECRET: &str = "secret";

#[derive(Deserialize)]
struct DefaultResultStorage {
    default_result_storage_block_id: Option<BlockDocumentId>,
}

impl Client {
    /// A block document. Without `secrets` its secret fields are asterisks, with status 200.
    pub async fn read_block(
        &self,
        type_slug: &str,
        name: &str,
        secrets: bool,
    ) -> Result<Option<BlockDocument>, Error> {
        let path = "block_types/slug/{}/block_documents/name/{}";
        let secrets = if secrets { "true" } else { "false" };
        self.read_optional(Call::new(Method::GET, path, &[type_slug, name]).query("include_secrets", secrets))
            .await
    }

    /// A block document by its id.
    pub async fn read_block_by_id(
        &self,
        id: BlockDocumentId,
        secrets: bool,
    ) -> Result<Option<BlockDocument>, Error> {
        let id = id.to_string();
        let secrets = if secrets { "true" } else { "false" };
        self.read_optional(
            Call::new(Method::GET, "block_documents/{}", &[&id]).query("include_secrets", secrets),
        )
        .await
    }

    /// The block that says where results are kept unless a program does; `None` if the server says nothing, as those
    /// before 3.7 always do.
    pub async fn read_default_result_storage(&self) -> Result<Option<BlockDocumentId>, Error> {
        let found: Option<DefaultResultStorage> =
            self.read_optional(Call::new(Method::GET, "admin/storage", &[])).await?;
        Ok(found.and_then(|found| found.default_result_storage_block_id))
    }

    /// Makes the Secret block of this name, or replaces its value.
    pub async fn save_secret(&self, name: &str, value: &SecretString) -> Result<(), Error> {
        let data = json!({"value": value.expose_secret()});
        if let Some(existing) = self.read_block(SECRET, name, false).await? {
            let id = existing.id.to_string();
            let change = json!({"data": data, "merge_existing_data": false});
            return self.call(Call::new(Method::PATCH, "block_documents/{}", &[&id]).json(&change)).await;
        }
        let kind: BlockType = self.read(Call::new(Method::GET, "block_types/slug/{}", &[SECRET])).await?;
        let filter = json!({"block_schemas": {"block_type_id": {"any_": [kind.id]}}});
        let schemas: Vec<BlockSchema> =
            self.read(Call::new(Method::POST, "block_schemas/filter", &[]).json(&filter)).await?;
        let schema = schemas.first().ok_or_else(|| Error::Setup {
            problem: "the server knows no schema of the Secret block".to_owned(),
        })?;
        let document = json!({"name": name, "data": data, "block_schema_id": schema.id, "block_type_id": kind.id,
            "is_anonymous": false});
        self.call(Call::new(Method::POST, "block_documents/", &[]).json(&document)).await
    }
}
