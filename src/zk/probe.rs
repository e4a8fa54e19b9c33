//! A connect request of our own, by hand. It shows whether a server serves, and which session timeout it grants.
//!
//! The crate hides the negotiated timeout, and what it does with a server that cannot serve is worse than
//! useless (it reconnects in a busy loop). So every server is asked here first. A server that answers has
//! committed a session, so it works with the quorum. The session is closed again at once.
//!
//! Owns one socket for the time of the call. Everything read is bounded, in size and in time.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// How long a server may take to accept a connection.
pub const CONNECT_WITHIN: Duration = Duration::from_millis(400);
/// How long we wait for the server to confirm that the probe's session is closed.
const CLOSE_WITHIN: Duration = Duration::from_millis(250);
/// An answer to a connect request has 41 bytes; one that is much larger does not come from ZooKeeper.
const ANSWER_MAX: usize = 1024;
/// Protocol version, timeout, session id and the length of the password: what we need of the answer.
const ANSWER_MIN: usize = 20;
/// Every password has this many bytes.
const PASSWORD_LENGTH: usize = 16;
const OP_CLOSE_SESSION: i32 = -11;
/// A server's limit of a request is searched until it is known to within this part of the request that was refused.
/// More precise would cost more sessions, and what is written is cut by halves anyway.
const SEARCH_PARTS: usize = 64;
/// The search ends after this time; the next connection goes on with it. A reconnect must not wait for longer.
const SEARCH_WITHIN: Duration = Duration::from_millis(600);

/// What a serving server granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The session timeout, within the limits of the server.
    pub timeout: Duration,
    /// A longer request makes the server hang up, as far as is known.
    pub request_max: usize,
}

/// Why a server grants no session.
#[derive(Debug, thiserror::Error)]
pub enum NoSession {
    #[error("no connection within {CONNECT_WITHIN:?}")]
    NoConnection,
    #[error("cannot connect: {0}")]
    CannotConnect(io::Error),
    #[error("hung up without an answer: it has no quorum, or too many connections from here")]
    HungUp,
    #[error("accepted the connection, but did not answer within {0:?}")]
    Silent(Duration),
    #[error("no answer to a connect request: {0}")]
    NoAnswer(io::Error),
    #[error("refused a new session")]
    Refused,
    #[error("no thread for asking it: {0}")]
    NoThread(io::Error),
}

/// Asks one server for a session with this timeout.
///
/// `suspect` is the length of a request over which a connection may have died, or zero. A server compares the length of
/// every request with its limit (`jute.maxbuffer`) before it reads the request, and accepts a connect request with
/// something behind it. So a connect request of that length shows whether the server would accept the other request.
pub fn probe(
    server: SocketAddr,
    ask_for: Duration,
    answer_within: Duration,
    suspect: usize,
) -> Result<Grant, NoSession> {
    let ask = |length| ask(server, ask_for, answer_within, length);
    let timeout = ask(0)?;
    if suspect == 0 {
        return Ok(Grant { timeout, request_max: usize::MAX });
    }
    let until = Instant::now() + SEARCH_WITHIN;
    let takes = |length| {
        if Instant::now() >= until {
            return None;
        }
        match ask(length) {
            Ok(_) => Some(true),
            // A server also hangs up when it has no quorum, or too many connections. Then it does so again.
            Err(NoSession::HungUp) => ask(0).is_ok().then_some(false),
            Err(_) => None,
        }
    };
    Ok(Grant { timeout, request_max: longest_taken(suspect, takes) })
}

/// The length of the longest request that is taken, no more than what is known of it. `takes` says whether a length is
/// taken, if it can.
fn longest_taken(suspect: usize, takes: impl Fn(usize) -> Option<bool>) -> usize {
    if takes(suspect) != Some(false) {
        return usize::MAX;
    }
    let (mut taken, mut refused) = (0, suspect);
    while refused - taken > suspect / SEARCH_PARTS + 1 {
        let middle = taken + (refused - taken) / 2;
        match takes(middle) {
            Some(true) => taken = middle,
            Some(false) => refused = middle,
            None => return refused - 1,
        }
    }
    taken
}

/// Asks for a session in a connect request of at least this length.
fn ask(
    server: SocketAddr,
    ask_for: Duration,
    answer_within: Duration,
    length: usize,
) -> Result<Duration, NoSession> {
    let stream = TcpStream::connect_timeout(&server, CONNECT_WITHIN);
    let mut stream = stream.map_err(|error| match error.kind() {
        io::ErrorKind::TimedOut => NoSession::NoConnection,
        _ => NoSession::CannotConnect(error),
    })?;
    let deadline = Instant::now() + answer_within;
    let answer = exchange(&mut stream, &connect_request(ask_for, length), deadline);
    let answer = answer.map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            NoSession::HungUp
        }
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => NoSession::Silent(answer_within),
        _ => NoSession::NoAnswer(error),
    })?;
    let timeout = read_grant(&answer).ok_or(NoSession::Refused)?;
    close(&mut stream);
    Ok(timeout)
}

fn exchange(stream: &mut TcpStream, request: &[u8], deadline: Instant) -> io::Result<Vec<u8>> {
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(CONNECT_WITHIN))?;
    stream.write_all(request)?;
    let mut length = [0; 4];
    read_until(stream, &mut length, deadline)?;
    let length = usize::try_from(i32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if !(ANSWER_MIN..=ANSWER_MAX).contains(&length) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "this is not a ZooKeeper server"));
    }
    let mut answer = vec![0; length];
    read_until(stream, &mut answer, deadline)?;
    Ok(answer)
}

/// Fills the buffer, or fails when the deadline passes, even if single bytes keep coming.
fn read_until(stream: &mut TcpStream, mut buffer: &mut [u8], deadline: Instant) -> io::Result<()> {
    while !buffer.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => buffer = &mut buffer[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn connect_request(ask_for: Duration, length: usize) -> Vec<u8> {
    let timeout_ms = i32::try_from(ask_for.as_millis()).unwrap_or(i32::MAX);
    let mut body = Vec::with_capacity(45);
    body.extend_from_slice(&0_i32.to_be_bytes()); // protocol version
    body.extend_from_slice(&0_i64.to_be_bytes()); // last zxid seen
    body.extend_from_slice(&timeout_ms.to_be_bytes());
    body.extend_from_slice(&0_i64.to_be_bytes()); // session id: a new one
    body.extend_from_slice(&(PASSWORD_LENGTH as i32).to_be_bytes());
    body.extend_from_slice(&[0; PASSWORD_LENGTH]);
    body.push(0); // not content with a read-only server
    body.resize(body.len().max(length), 0);
    framed(&body)
}

fn framed(body: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(4 + body.len());
    frame.extend_from_slice(&(body.len() as i32).to_be_bytes());
    frame.extend_from_slice(body);
    frame
}

/// The timeout that a server grants, if it grants a session.
fn read_grant(answer: &[u8]) -> Option<Duration> {
    let timeout_ms = answer.get(4..8).and_then(|bytes| bytes.try_into().ok()).map(i32::from_be_bytes);
    match timeout_ms.and_then(|timeout_ms| u64::try_from(timeout_ms).ok()) {
        Some(timeout_ms) if timeout_ms > 0 => Some(Duration::from_millis(timeout_ms)),
        _ => None,
    }
}

/// Closes the probe's session. If that fails, the session ends by itself after its timeout; it owns nothing.
fn close(stream: &mut TcpStream) {
    let mut body = Vec::with_capacity(8);
    body.extend_from_slice(&0_i32.to_be_bytes()); // xid
    body.extend_from_slice(&OP_CLOSE_SESSION.to_be_bytes());
    if stream.write_all(&framed(&body)).is_ok() {
        let mut reply = [0; 20];
        let _ = read_until(stream, &mut reply, Instant::now() + CLOSE_WITHIN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connect_request_has_the_bytes_of_the_protocol() {
        let request = connect_request(Duration::from_secs(10), 0);
        assert_eq!(connect_request(Duration::from_secs(10), 1000).len(), 1004);
        assert_eq!(request.len(), 49);
        assert_eq!(request[..4], 45_i32.to_be_bytes());
        assert_eq!(request[16..20], 10_000_i32.to_be_bytes());
        assert_eq!(request[28..32], 16_i32.to_be_bytes());
    }

    #[test]
    fn a_grant_of_nothing_is_a_refusal() {
        let mut answer = vec![0; 37];
        assert!(read_grant(&answer).is_none());
        answer[4..8].copy_from_slice(&(-5_i32).to_be_bytes());
        assert!(read_grant(&answer).is_none());
        answer[4..8].copy_from_slice(&4_000_i32.to_be_bytes());
        assert_eq!(read_grant(&answer), Some(Duration::from_secs(4)));
    }

    #[test]
    fn the_longest_accepted_request_is_found() {
        for limit in [0, 1, 4_096, 99_999, 109_999] {
            let found = longest_taken(110_000, |length| Some(length <= limit));
            assert!(found <= limit && limit - found <= 110_000 / SEARCH_PARTS + 1, "{limit}: {found}");
        }
        assert_eq!(longest_taken(110_000, |_| Some(true)), usize::MAX);
        assert_eq!(longest_taken(110_000, |_| None), usize::MAX);
        let once = std::cell::Cell::new(true);
        assert_eq!(longest_taken(110_000, |_| once.replace(false).then_some(false)), 109_999);
    }
}
