//! A place of its own for every test: a fresh bucket on one server.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use pailfs::error::Result;
use pailfs::s3::{
    DeleteRequest, GetRequest, ListRequest, ListVersionsRequest, PutRequest, Store, Versioning, Written,
};

use super::Server;

#[derive(Clone)]
pub struct Place {
    pub server: Server,
    pub store: Arc<dyn Store>,
    pub bucket: String,
}

impl Place {
    /// A fresh bucket on `server`.
    pub async fn make(server: Server, store: Arc<dyn Store>) -> Result<Self> {
        let place = Self { server, store, bucket: fresh_name() };
        place.store.create_bucket(&place.bucket, None).await?;
        Ok(place)
    }

    /// Another fresh bucket on the same server.
    pub async fn beside(&self) -> Result<Self> {
        Self::make(self.server, Arc::clone(&self.store)).await
    }

    pub async fn put(&self, key: &str, body: impl Into<Bytes>) -> Result<Written> {
        self.store.put(self.put_request(key, body)).await
    }

    pub fn put_request(&self, key: &str, body: impl Into<Bytes>) -> PutRequest {
        PutRequest {
            bucket: self.bucket.clone(),
            key: key.to_owned(),
            body: body.into(),
            ..PutRequest::default()
        }
    }

    pub async fn get(&self, key: &str) -> Result<Bytes> {
        self.store.get(self.get_request(key)).await?.bytes().await
    }

    pub fn get_request(&self, key: &str) -> GetRequest {
        GetRequest { bucket: self.bucket.clone(), key: key.to_owned(), ..GetRequest::default() }
    }

    pub async fn delete(&self, key: &str) -> Result<pailfs::s3::Deleted> {
        self.store.delete(self.delete_request(key)).await
    }

    pub fn delete_request(&self, key: &str) -> DeleteRequest {
        DeleteRequest { bucket: self.bucket.clone(), key: key.to_owned(), ..DeleteRequest::default() }
    }

    pub fn list_request(&self, prefix: &str) -> ListRequest {
        ListRequest { bucket: self.bucket.clone(), prefix: prefix.to_owned(), ..ListRequest::default() }
    }

    /// Every key of the bucket, as the server's pages give them.
    pub async fn keys(&self) -> Result<Vec<String>> {
        let mut request = self.list_request("");
        let mut keys = Vec::new();
        loop {
            let page = self.store.list(request.clone()).await?;
            keys.extend(page.objects.into_iter().map(|object| object.key));
            match page.next {
                Some(next) => request.continuation = Some(next),
                None => return Ok(keys),
            }
        }
    }

    /// Takes the bucket and all it holds away. The servers are thrown away with their data, so this only
    /// keeps a long run small, and what does not work is left.
    pub async fn remove(self) {
        let _ = self.empty().await;
        let _ = self.store.delete_bucket(&self.bucket).await;
    }

    async fn empty(&self) -> Result<()> {
        for upload in self.store.list_uploads(&self.bucket, "").await? {
            self.store.abort_upload(&upload.upload).await?;
        }
        if matches!(
            self.store.versioning(&self.bucket).await,
            Ok(Versioning::Enabled | Versioning::Suspended)
        ) {
            let request =
                ListVersionsRequest { bucket: self.bucket.clone(), ..ListVersionsRequest::default() };
            for version in self.store.list_versions(request).await?.versions {
                let mut delete = self.delete_request(&version.key);
                delete.version_id = Some(version.version_id);
                self.store.delete(delete).await?;
            }
        }
        for keys in self.keys().await?.chunks(1000) {
            self.store
                .delete_many(&self.bucket, keys.iter().map(pailfs::s3::DeleteKey::any).collect())
                .await?;
        }
        Ok(())
    }
}

/// A bucket name that no other test has, in this process or beside it.
pub fn fresh_name() -> String {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    format!("t{}-{}-{:08x}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed), rand::random::<u32>())
}
