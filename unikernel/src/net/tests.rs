//! The TCP stack over a cable that is made up.

extern crate std;

use super::{Census, NetLimits, Stack, StackError};
use crate::options::Options;
use core::mem::MaybeUninit;
use core::time::Duration;
use embedded_io::{Read, ReadReady, Write, WriteReady};
use outrider_core::arena::Arena;
use outrider_hal::{Endpoint, Instant, NetError, Network, StreamId};
use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, RxToken, TxToken};
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, Ipv4Repr, TcpControl,
    TcpPacket, TcpRepr, TcpSeqNumber,
};
use std::boxed::Box;
use std::collections::{HashSet, VecDeque};
use std::format;
use std::vec::Vec;

/// One end of a cable.
#[derive(Default)]
struct Port {
    incoming: VecDeque<Vec<u8>>,
    outgoing: VecDeque<Vec<u8>>,
}

struct Received(Vec<u8>);
struct Sending<'a>(&'a mut VecDeque<Vec<u8>>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, look: F) -> R {
        look(&self.0)
    }
}

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        let mut frame = std::vec![0; len];
        let result = fill(&mut frame);
        self.0.push_back(frame);
        result
    }
}

impl Device for Port {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Received, Sending<'_>)> {
        let frame = self.incoming.pop_front()?;
        Some((Received(frame), Sending(&mut self.outgoing)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Sending<'_>> {
        Some(Sending(&mut self.outgoing))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

type Node = Stack<'static, Port>;

const REGION_BYTES: usize = 1 << 20;

#[repr(align(4096))]
struct Region([MaybeUninit<u8>; REGION_BYTES]);

const LIMITS: NetLimits = NetLimits {
    accepted: 4,
    connected: 2,
    backlog: 2,
    lingering: 2,
    receive_bytes: 4096,
    send_bytes: 4096,
    ..NetLimits::DEFAULT
};

fn node_with(host: u8, limits: NetLimits) -> Result<Node, StackError> {
    let region = Box::leak(Box::new(Region([MaybeUninit::uninit(); REGION_BYTES])));
    let mut arena = Arena::new(&mut region.0).unwrap();
    let line = Box::leak(Box::new(format!("selftest ip=10.0.0.{host}/24 ip=fd00::{host}/64")));
    let options = Options::parse(line).unwrap();
    let mac = [2, 0, 0, 0, 0, host];
    let seed = u64::from(host) * 0x1234_5678_9abc_def1;
    Stack::new(limits, &options, mac, seed, Port::default(), &mut arena, Instant(0))
}

fn node(host: u8) -> Node {
    node_with(host, LIMITS).unwrap()
}

fn at(addr: &str) -> Endpoint {
    addr.parse::<core::net::SocketAddr>().unwrap().into()
}

fn millis(ms: u64) -> Instant {
    Instant(ms * 1_000_000)
}

/// Lets both nodes talk from `from` to `to`, in milliseconds.
fn talk(a: &mut Node, b: &mut Node, from: u64, to: u64) {
    for ms in from..to {
        for _ in 0..4 {
            a.poll(millis(ms));
            b.poll(millis(ms));
            b.device.incoming.append(&mut a.device.outgoing);
            a.device.incoming.append(&mut b.device.outgoing);
        }
    }
}

fn connected(a: &mut Node, b: &mut Node, to: &str, ms: u64) -> (StreamId, StreamId) {
    let ours = a.connect(at(to)).unwrap();
    talk(a, b, ms, ms + 50);
    assert_eq!(a.stream(ours).unwrap().write_ready(), Ok(true));
    (ours, b.accept().unwrap())
}

#[test]
fn bytes_and_ends_travel_over_both_families() {
    for to in ["10.0.0.2:7", "[fd00::2]:7"] {
        let (mut a, mut b) = (node(1), node(2));
        b.listen(at("[::]:7")).unwrap();
        let (ours, theirs) = connected(&mut a, &mut b, to, 0);
        assert_eq!(a.stream(ours).unwrap().write(b"hello"), Ok(5));
        talk(&mut a, &mut b, 50, 60);
        let stream = b.stream(theirs).unwrap();
        assert_eq!(stream.read_ready(), Ok(true));
        let mut bytes = [0; 10];
        assert_eq!(stream.read(&mut bytes), Ok(5));
        assert_eq!(&bytes[..5], b"hello");
        assert_eq!(stream.read_ready(), Ok(false));
        // What was written before the close still arrives, and then the end.
        a.stream(ours).unwrap().write(b"bye").unwrap();
        a.close(ours);
        assert!(a.stream(ours).is_none());
        talk(&mut a, &mut b, 60, 80);
        let stream = b.stream(theirs).unwrap();
        assert_eq!(stream.read(&mut bytes), Ok(3));
        assert_eq!(stream.read_ready(), Ok(true));
        assert_eq!(stream.read(&mut bytes), Ok(0));
        b.close(theirs);
        talk(&mut a, &mut b, 80, 100);
        assert_eq!(a.census(), Census::default());
        assert_eq!(b.census(), Census { listening: 2, ..Census::default() });
    }
}

#[test]
fn nobody_listens_is_an_error_and_silence_is_one_later() {
    let (mut a, mut b) = (node(1), node(2));
    let refused = a.connect(at("10.0.0.2:7")).unwrap();
    talk(&mut a, &mut b, 0, 50);
    assert_eq!(a.stream(refused).unwrap().write_ready(), Err(NetError::Closed));
    a.close(refused);
    let silent = a.connect(at("10.0.0.9:7")).unwrap();
    assert_eq!(a.stream(silent).unwrap().write_ready(), Ok(false));
    for ms in (50..30_000).step_by(10) {
        a.poll(millis(ms));
    }
    assert_eq!(a.stream(silent).unwrap().write_ready(), Err(NetError::Closed));
    assert!(a.connect(at("8.8.8.8:7")).is_ok_and(|id| a.stream(id).is_some()));
    assert_eq!(a.listen(at("10.0.0.77:7")), Err(NetError::Unavailable));
}

#[test]
fn each_side_keeps_its_slots_and_names_are_never_reused() {
    let (mut a, mut b) = (node(1), node(2));
    b.listen(at("10.0.0.2:7")).unwrap();
    let mut names = HashSet::new();
    for round in 0..20 {
        let (ours, theirs) = connected(&mut a, &mut b, "10.0.0.2:7", round * 100);
        assert!(names.insert(('a', ours)) && names.insert(('b', theirs)));
        a.close(ours);
        b.close(theirs);
        talk(&mut a, &mut b, round * 100 + 50, round * 100 + 100);
        assert!(a.stream(ours).is_none() && b.stream(theirs).is_none());
    }
    // With all that it may accept taken, the node can still connect.
    let mut c = node_with(1, NetLimits { connected: 8, ..LIMITS }).unwrap();
    let mut b = node(2);
    b.listen(at("10.0.0.2:7")).unwrap();
    c.listen(at("10.0.0.1:8")).unwrap();
    for round in 0..4 {
        connected(&mut c, &mut b, "10.0.0.2:7", round * 100);
    }
    let refused = c.connect(at("10.0.0.2:7")).unwrap();
    talk(&mut c, &mut b, 400, 450);
    assert_eq!(c.stream(refused).unwrap().write_ready(), Err(NetError::Closed));
    assert_eq!(b.census(), Census { accepted: 4, ..Census::default() });
    connected(&mut b, &mut c, "10.0.0.1:8", 500);
    connected(&mut b, &mut c, "10.0.0.1:8", 600);
    assert_eq!(b.connect(at("10.0.0.1:8")), Err(NetError::TooMany));
}

/// A SYN from a host that will never answer.
fn syn(from: u8, port: u16) -> Vec<u8> {
    let checksums = ChecksumCapabilities::default();
    let tcp = TcpRepr {
        src_port: port,
        dst_port: 7,
        control: TcpControl::Syn,
        seq_number: TcpSeqNumber(1),
        ack_number: None,
        window_len: 1000,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    let ip = Ipv4Repr {
        src_addr: [10, 0, 0, from].into(),
        dst_addr: [10, 0, 0, 2].into(),
        next_header: IpProtocol::Tcp,
        payload_len: tcp.buffer_len(),
        hop_limit: 64,
    };
    let mut bytes = std::vec![0; 14 + ip.buffer_len() + tcp.buffer_len()];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes[..]);
    frame.set_src_addr(EthernetAddress([2, 0, 0, 0, 0, from]));
    frame.set_dst_addr(EthernetAddress([2, 0, 0, 0, 0, 2]));
    frame.set_ethertype(EthernetProtocol::Ipv4);
    let mut packet = Ipv4Packet::new_unchecked(frame.payload_mut());
    ip.emit(&mut packet, &checksums);
    let mut segment = TcpPacket::new_unchecked(packet.payload_mut());
    tcp.emit(&mut segment, &ip.src_addr.into(), &ip.dst_addr.into(), &checksums);
    bytes
}

#[test]
fn half_open_connections_give_their_slots_up() {
    let mut b = node(2);
    b.listen(at("10.0.0.2:7")).unwrap();
    b.device.incoming.extend([syn(50, 1000), syn(51, 1000)]);
    b.poll(millis(0));
    assert_eq!(b.census(), Census { half_open: 2, ..Census::default() });
    let deadline = b.poll_timeout().unwrap();
    assert!(deadline <= millis(0).plus(LIMITS.half_open));
    b.poll(millis(0).plus(LIMITS.half_open - Duration::from_millis(1)));
    b.poll(millis(0).plus(LIMITS.half_open));
    b.poll(millis(1).plus(LIMITS.half_open));
    assert_eq!(b.census(), Census { listening: 2, ..Census::default() });
}

#[test]
fn a_flood_of_half_open_connections_starves_nobody() {
    let (mut a, mut b) = (node(1), node(2));
    b.listen(at("10.0.0.2:7")).unwrap();
    let mut attempt = None;
    let mut accepted = None;
    let mut attempts = 0;
    for ms in 0..20_000 {
        // 200 SYNs a second from 100 hosts, for ever.
        if ms % 5 == 0 {
            b.device.incoming.push_back(syn(100 + (ms / 5 % 100) as u8, (ms % 60_000) as u16 + 1));
        }
        let ready = match attempt {
            Some(id) => a.stream(id).map_or(Err(NetError::Closed), WriteReady::write_ready),
            None => Err(NetError::Closed),
        };
        if ready.is_err() && ms % 10 == 3 {
            attempt.into_iter().for_each(|id| a.close(id));
            attempt = a.connect(at("10.0.0.2:7")).ok();
            attempts += 1;
        }
        talk(&mut a, &mut b, ms, ms + 1);
        accepted = accepted.or_else(|| b.accept());
        if accepted.is_some() && ready == Ok(true) {
            break;
        }
    }
    assert!(accepted.is_some(), "not let in after {attempts} attempts");
}

#[test]
fn limits_that_contradict_each_other_are_refused() {
    assert!(NetLimits::DEFAULT.validate());
    for limits in [
        NetLimits { backlog: 0, ..LIMITS },
        NetLimits { backlog: 5, ..LIMITS },
        NetLimits { connected: 0, ..LIMITS },
        NetLimits { receive_bytes: 100, ..LIMITS },
        NetLimits { accepted: 70_000, ..LIMITS },
    ] {
        assert_eq!(node_with(1, limits).err(), Some(StackError::Limits));
    }
    let many = NetLimits { accepted: 4000, ..LIMITS };
    assert_eq!(node_with(1, many).err(), Some(StackError::Memory));
}
