//! gRPC over HTTP/2: as much of tonic as a client needs, under tonic's names.

use std::error::Error;
use std::marker::PhantomData;
use std::pin::Pin;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::future::poll_fn;
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request};
use openssl::ssl::{SslConnector, SslMethod};
use openssl::x509::store::X509StoreBuilder;
use percent_encoding::percent_decode_str;
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{timeout_at, Instant};
use tokio_openssl::SslStream;

use crate::proto::google::rpc::Code;

/// Bytes before each message: a flag for compression, and the length, big-endian.
const PREFIX: usize = 5;
/// The largest message to accept, as gRPC libraries have it.
const MAX_MESSAGE_BYTES: usize = 4 << 20;
/// How far a server may run ahead of a client that does not read.
const WINDOW: u32 = 4 << 20;
/// What a call may take. Without a deadline, a call to a server that hangs would hang too.
const CALL_TIME: Duration = Duration::from_secs(60);

/// How a call failed.
#[derive(Debug)]
pub struct Status {
    pub code: Code,
    pub message: String,
    /// A serialised google.rpc.Status; empty if gRPC itself made the error.
    pub details: Bytes,
}

impl Status {
    pub fn new(code: Code, message: impl ToString) -> Self {
        Self { code, message: message.to_string(), details: Bytes::new() }
    }

    /// The status that trailers tell; None without one.
    fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let code = text("grpc-status")?.parse().ok().and_then(Code::from_i32).unwrap_or(Code::Unknown);
        let message = percent_decode_str(text("grpc-message").unwrap_or("")).decode_utf8_lossy().into_owned();
        // Binary metadata is base64, and servers differ in whether they pad it.
        let binary = |value: &str| base64::decode_config(value.trim_end_matches('='), base64::STANDARD_NO_PAD).ok();
        let details = text("grpc-status-details-bin").and_then(binary);
        Some(Self { code, message, details: details.unwrap_or_default().into() })
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{}: {}", self.code.as_str_name(), self.message)
    }
}

impl std::error::Error for Status {}

impl From<h2::Error> for Status {
    fn from(error: h2::Error) -> Self {
        Self::new(Code::Unavailable, error)
    }
}

/// A connection, which carries any number of calls at once.
#[derive(Clone)]
pub struct Channel {
    /// Scheme and address.
    server: String,
    requests: SendRequest<Bytes>,
    call_time: Duration,
    model: String,
    token: Option<String>,
}

impl Channel {
    /// Connects for calls about one model: a proxy in front of several servers chooses by it. In plain text, or over
    /// TLS if there is a file of authorities to trust; each call shows the token, if there is one.
    pub async fn connect(
        address: &str,
        model: &str,
        authorities: Option<String>,
        token: Option<String>,
    ) -> Result<Self, Status> {
        let unavailable = |error: Box<dyn Error>| Status::new(Code::Unavailable, format!("{address}: {error}"));
        let socket = TcpStream::connect(address).await.map_err(|error| unavailable(error.into()))?;
        socket.set_nodelay(true).map_err(|error| unavailable(error.into()))?;
        let (scheme, requests) = match authorities {
            None => ("http", over(socket).await?),
            Some(file) => ("https", over(secured(socket, address, &file).await.map_err(unavailable)?).await?),
        };
        let server = format!("{scheme}://{address}");
        Ok(Self { server, requests, call_time: CALL_TIME, model: model.to_owned(), token })
    }

    /// The same connection, for calls with another deadline.
    pub fn with_timeout(&self, call_time: Duration) -> Self {
        Self { call_time, ..self.clone() }
    }

    pub async fn unary<I: Message, O: Message + Default>(&self, path: &str, request: I) -> Result<O, Status> {
        let mut responses = self.server_streaming(path, request).await?;
        let response = responses.message().await?.ok_or_else(|| Status::new(Code::Internal, "no response"))?;
        // The status comes after the response, and only it says that all went well.
        match responses.message().await? {
            None => Ok(response),
            Some(_) => Err(Status::new(Code::Internal, "more than one response")),
        }
    }

    pub async fn server_streaming<I: Message, O>(&self, path: &str, request: I) -> Result<Streaming<O>, Status> {
        self.call(path, vec![encode(&request)]).await
    }

    /// Sends all requests while the responses are read.
    pub async fn streaming<I: Message, O>(&self, path: &str, requests: Vec<I>) -> Result<Streaming<O>, Status> {
        self.call(path, requests.iter().map(encode).collect()).await
    }

    async fn call<O>(&self, path: &str, messages: Vec<Bytes>) -> Result<Streaming<O>, Status> {
        let deadline = Instant::now() + self.call_time;
        let mut request = Request::post(format!("{}{path}", self.server))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("dst-model", &self.model)
            .header("grpc-timeout", format!("{}m", self.call_time.as_millis()));
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let request = request.body(()).expect("the address is part of a URI, and the token of a header");
        let (response, outgoing) = self.requests.clone().ready().await?.send_request(request, false)?;
        // If the server ends the call first, sending fails, and the response says why.
        tokio::spawn(send(outgoing, messages));
        let response = timeout_at(deadline, response).await.map_err(|_| late())??;
        if response.status() != http::StatusCode::OK {
            return Err(Status::new(Code::Unknown, format!("HTTP status {}", response.status())));
        }
        // An answer without messages has the status among its headers, and no trailers.
        let (head, body) = response.into_parts();
        match Status::from_headers(&head.headers) {
            Some(status) if status.code != Code::Ok => Err(status),
            _ => Ok(Streaming { body, received: BytesMut::new(), deadline, messages: PhantomData }),
        }
    }
}

/// What sends requests over a socket.
async fn over<S>(socket: S) -> Result<SendRequest<Bytes>, Status>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (requests, connection) = h2::client::Builder::new()
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .handshake(socket)
        .await?;
    // Calls see for themselves if the connection breaks.
    tokio::spawn(connection);
    Ok(requests)
}

/// TLS on a socket, for HTTP/2, with a server that the authorities in a PEM file vouch for, and nobody else does.
async fn secured(socket: TcpStream, address: &str, file: &str) -> Result<SslStream<TcpStream>, Box<dyn Error>> {
    let mut connector = SslConnector::builder(SslMethod::tls_client())?;
    connector.set_cert_store(X509StoreBuilder::new()?.build());
    connector.set_ca_file(file)?;
    connector.set_alpn_protos(b"\x02h2")?;
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let mut stream = SslStream::new(connector.build().configure()?.into_ssl(host)?, socket)?;
    Pin::new(&mut stream).connect().await?;
    Ok(stream)
}

/// The responses of a call. Dropping it cancels the call, and stops the server's work.
pub struct Streaming<T> {
    body: RecvStream,
    received: BytesMut,
    deadline: Instant,
    messages: PhantomData<T>,
}

impl<T: Message + Default> Streaming<T> {
    /// The next response; None once all have come and the status is OK.
    pub async fn message(&mut self) -> Result<Option<T>, Status> {
        loop {
            if let Some(message) = self.take()? {
                let message = T::decode(message);
                return message.map(Some).map_err(|error| Status::new(Code::Internal, error));
            }
            match timeout_at(self.deadline, self.body.data()).await.map_err(|_| late())? {
                Some(data) => {
                    let data = data?;
                    // The server may send as much again.
                    self.body.flow_control().release_capacity(data.len())?;
                    self.received.extend_from_slice(&data);
                }
                None => return self.end().await,
            }
        }
    }

    /// The bytes of the next message, if they are there.
    fn take(&mut self) -> Result<Option<Bytes>, Status> {
        let mut prefix = match self.received.get(..PREFIX) {
            Some(prefix) => prefix,
            None => return Ok(None),
        };
        let compressed = prefix.get_u8();
        let length = prefix.get_u32() as usize;
        if compressed != 0 || length > MAX_MESSAGE_BYTES {
            return Err(Status::new(Code::Internal, format!("a message of {length} bytes, flag {compressed}")));
        }
        if self.received.len() < PREFIX + length {
            self.received.reserve(PREFIX + length - self.received.len());
            return Ok(None);
        }
        self.received.advance(PREFIX);
        Ok(Some(self.received.split_to(length).freeze()))
    }

    async fn end(&mut self) -> Result<Option<T>, Status> {
        let trailers = timeout_at(self.deadline, self.body.trailers()).await.map_err(|_| late())??;
        match trailers.as_ref().and_then(Status::from_headers) {
            Some(status) if status.code == Code::Ok && self.received.is_empty() => Ok(None),
            Some(status) if status.code != Code::Ok => Err(status),
            _ => Err(Status::new(Code::Unavailable, "the answer ended without a status")),
        }
    }
}

fn late() -> Status {
    Status::new(Code::DeadlineExceeded, "the server did not answer in time")
}

fn encode(message: &impl Message) -> Bytes {
    let mut frame = BytesMut::with_capacity(PREFIX + message.encoded_len());
    frame.put_u8(0); // not compressed
    frame.put_u32(message.encoded_len() as u32);
    message.encode(&mut frame).expect("there is room");
    frame.freeze()
}

/// Sends messages as fast as the server takes them, then ends the sending side.
async fn send(mut stream: SendStream<Bytes>, messages: Vec<Bytes>) -> Result<(), h2::Error> {
    for mut message in messages {
        while !message.is_empty() {
            stream.reserve_capacity(message.len());
            match poll_fn(|context| stream.poll_capacity(context)).await {
                Some(capacity) => stream.send_data(message.split_to(capacity?.min(message.len())), false)?,
                None => return Ok(()), // the call is over
            }
        }
    }
    stream.send_data(Bytes::new(), true)
}
