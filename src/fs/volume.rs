//! Buckets and prefixes of a mount, and where a mount of all buckets finds them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::deletes::Deletes;
use super::namespace::Namespace;
use crate::base::ETag;
use crate::error::Result;
use crate::read::{Object, ObjectId};
use crate::s3::{NewObjects, Session, Store, try_new_objects};
use crate::tree::keys::DirKey;
use crate::tree::listing::Order;
use crate::write::{Conditions, CopySizes, PartRule};

/// A bucket, and the part of it that is mounted.
pub struct Volume {
    pub bucket: String,
    /// Empty, or ends with `/`.
    pub prefix: String,
    pub store: Arc<dyn Store>,
    pub read_only: bool,
    /// What its objects get beside their bytes.
    pub new_objects: Box<NewObjects>,
    /// Whether the server has to show that it gives that to them.
    unproven: bool,
    /// How far the order of the server's listings is known at the start.
    pub order: Order,
    /// Session and endpoint: server-side copies work between volumes that agree on both.
    pub reach: String,
    /// Endpoint, or "aws": with the bucket's name it says which bucket this is, on every mount of this host. Without
    /// one nothing of the bucket is kept on disk.
    pub origin: Arc<str>,
    /// Which keys are being changed.
    pub(super) namespace: Arc<Namespace>,
    pub(super) deletes: Box<Deletes>,
    /// Of which sizes the server takes parts.
    pub(super) part_rule: Arc<PartRule>,
    /// How what is large is copied on the server.
    pub(super) copy_sizes: CopySizes,
    probe: Option<Probe>,
    order_probe: Option<OrderProbe>,
    /// Whether the probe was asked.
    order_asked: AtomicBool,
    /// Whether a marker was looked at for what was said beside it.
    marker_tried: AtomicBool,
}

/// Finds out which conditions the server honours; asked before each write that needs to know, and keeps what it found
/// out for as long as that is sure.
pub type Probe = Box<dyn Fn() -> futures::future::BoxFuture<'static, Result<Conditions>> + Send + Sync>;

impl Volume {
    pub fn new(bucket: &str, prefix: &str, store: Arc<dyn Store>) -> Self {
        Self {
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
            store,
            read_only: false,
            new_objects: Box::default(),
            unproven: false,
            order: Order::Known,
            reach: String::new(),
            origin: Arc::from(""),
            namespace: Arc::default(),
            deletes: Box::default(),
            part_rule: Arc::default(),
            copy_sizes: CopySizes::default(),
            probe: None,
            order_probe: None,
            order_asked: AtomicBool::new(false),
            marker_tried: AtomicBool::new(false),
        }
    }

    #[must_use]
    pub fn read_only(mut self, read_only: bool) -> Self {
        self.read_only = read_only;
        self
    }

    #[must_use]
    pub fn new_objects(mut self, new_objects: NewObjects) -> Self {
        self.new_objects = Box::new(new_objects);
        self
    }

    /// Has the server show that its objects get what is asked for; see [`Volume::prove`].
    #[must_use]
    pub fn unproven(mut self) -> Self {
        self.unproven = true;
        self
    }

    /// Fails where something is asked for new objects that the server refuses or forgets.
    pub async fn prove(&self) -> Result<()> {
        if self.read_only || !self.unproven || *self.new_objects == NewObjects::default() {
            return Ok(());
        }
        try_new_objects(&*self.store, &self.bucket, &self.prefix, &self.new_objects).await
    }

    #[must_use]
    pub fn order(mut self, order: Order) -> Self {
        self.order = order;
        self
    }

    #[must_use]
    pub fn reach(mut self, reach: impl Into<String>) -> Self {
        self.reach = reach.into();
        self
    }

    #[must_use]
    pub fn origin(mut self, origin: &str) -> Self {
        self.origin = Arc::from(origin);
        self
    }

    /// Finds out in which order the server lists; asked once, when the mount has begun or the bucket is first listed.
    #[must_use]
    pub fn order_probe(mut self, probe: OrderProbe) -> Self {
        self.order_probe = Some(probe);
        self
    }

    #[must_use]
    pub fn part_rule(mut self, rule: PartRule) -> Self {
        self.part_rule = Arc::new(rule);
        self
    }

    #[must_use]
    pub fn copy_sizes(mut self, sizes: CopySizes) -> Self {
        self.copy_sizes = sizes;
        self
    }

    #[must_use]
    pub fn probe(mut self, probe: Probe) -> Self {
        self.probe = Some(probe);
        self
    }

    /// One version of one of its objects. `id` is this volume's number.
    pub(super) fn object(&self, id: u32, key: &str, etag: ETag, size: u64) -> Object {
        let id = ObjectId { volume: id, key: Arc::from(key), etag };
        Object::new(id, Arc::from(self.bucket.as_str()), size, Arc::clone(&self.store))
            .from_origin(Arc::clone(&self.origin))
    }

    /// How to find out in which order the server lists, for the first who asks where that is not known.
    pub(super) fn take_order_probe(&self) -> Option<&OrderProbe> {
        let probe = self.order_probe.as_ref().filter(|_| self.order == Order::Unknown)?;
        (!self.order_asked.swap(true, Ordering::Relaxed)).then_some(probe)
    }

    /// Whether the server has yet to show that it keeps what is said beside markers; so to the first who asks.
    pub(super) fn tries_marker(&self) -> bool {
        self.probe.is_some() && !self.marker_tried.swap(true, Ordering::Relaxed)
    }

    pub(super) fn dir_key(&self) -> DirKey {
        DirKey::root(&self.prefix)
    }

    /// Which conditions this bucket's server honours. Without a probe, all: the server is known to.
    pub(super) async fn honoured(&self) -> Conditions {
        let Some(probe) = &self.probe else { return Conditions::ALL };
        match probe().await {
            Ok(conditions) => conditions,
            Err(error) => {
                // Nothing is known, so nothing is relied on; the next write asks again.
                tracing::warn!(bucket = self.bucket, error = %error.report(), "could not probe the endpoint");
                Conditions::NONE
            }
        }
    }
}

/// Finds out in which order a server lists; `None` where that cannot be told now.
pub type OrderProbe = Box<dyn Fn() -> futures::future::BoxFuture<'static, Option<Order>> + Send + Sync>;

/// What a mount shows at its root.
pub enum Root {
    /// One bucket, or a prefix of it.
    Volume(Volume),
    /// A directory for each of these.
    Named(Vec<(String, Volume)>),
    /// A directory for each bucket that can be found.
    Buckets(Buckets),
}

/// Where the buckets of a whole-session mount come from.
pub struct Buckets {
    pub store: Arc<dyn Store>,
    /// Finds the client for a bucket's own region; without it `store` serves all.
    pub session: Option<Arc<Session>>,
    pub read_only: bool,
    /// Makes the volume of a bucket from its name and store.
    pub open: OpenBucket,
}

/// Makes the volume of a bucket.
pub type OpenBucket = Box<dyn Fn(&str, Arc<dyn Store>) -> Volume + Send + Sync>;

impl Buckets {
    pub(super) async fn open(&self, bucket: &str) -> Result<Volume> {
        let store = match &self.session {
            Some(session) => session.store_for(bucket).await?.0,
            None => Arc::clone(&self.store),
        };
        store.head_bucket(bucket).await?;
        let volume = (self.open)(bucket, store).read_only(self.read_only);
        volume.prove().await?;
        Ok(volume)
    }
}
