use crate::base::*; use crate::error::Result; use crate::s3::Store; use crate::stats::Stats;
use std::sync::{Arc, Mutex}; use bytes::Bytes;
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ObjectId { pub volume: u32, pub key: Arc<str>, pub etag: ETag }
#[derive(Clone)]
pub struct Object { pub id: ObjectId, pub bucket: Arc<str>, pub size: u64, store: Arc<dyn Store> }
impl std::fmt::Debug for Object { fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.write_str("x") } }
impl Object {
  pub fn new(id: ObjectId, bucket: Arc<str>, size: u64, store: Arc<dyn Store>) -> Self { Self { id, bucket, size, store } }
  pub fn store(&self) -> &Arc<dyn Store> { &self.store }
}
#[derive(Default, Debug)] pub struct Window;
#[derive(Default)] pub struct ReadSettings { pub cache_bytes: u64 }
pub struct Reader;
impl Reader {
  pub fn new(_s: ReadSettings, _b: Budget, _st: Arc<Stats>) -> Self { Self }
  pub fn cached(&self, _o: &Object, _w: &Mutex<Window>, _r: ByteRange) -> Option<Vec<Bytes>> { None }
  pub async fn read(&self, _o: &Object, _w: &Mutex<Window>, _r: ByteRange) -> Result<Vec<Bytes>> { Ok(vec![]) }
  pub fn drop_all(&self) {}
}
