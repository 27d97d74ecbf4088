/// S3 in memory.
#[derive(Debug)]
pub struct MemStore;
