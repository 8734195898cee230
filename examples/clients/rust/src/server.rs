//! The services of one server; one connection carries them all.

use std::env;
use std::time::Duration;

use crate::grpc::{Channel, Status};
use crate::proto::dst::v1::{CatalogServiceClient, ContextServiceClient, DerivedScalarServiceClient};
use crate::proto::grpc::health::v1::HealthClient;

pub struct Server {
    pub health: HealthClient,
    pub catalog: CatalogServiceClient,
    pub contexts: ContextServiceClient,
    pub scalars: DerivedScalarServiceClient,
    channel: Channel,
}

impl Server {
    pub async fn connect(address: &str, model: &str) -> Result<Self, Status> {
        let given = |name| env::var(name).ok().filter(|value| !value.is_empty());
        let (authorities, token) = (given("DST_CLIENT_CA"), given("DST_CLIENT_TOKEN"));
        Ok(Self::on(Channel::connect(address, model, authorities, token).await?))
    }

    /// The same server, for calls with another deadline.
    pub fn with_timeout(&self, call_time: Duration) -> Self {
        Self::on(self.channel.with_timeout(call_time))
    }

    fn on(channel: Channel) -> Self {
        Self {
            health: HealthClient::new(channel.clone()),
            catalog: CatalogServiceClient::new(channel.clone()),
            contexts: ContextServiceClient::new(channel.clone()),
            scalars: DerivedScalarServiceClient::new(channel.clone()),
            channel,
        }
    }
}
