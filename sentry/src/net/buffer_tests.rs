//! Tests of byte queues.

use super::*;

fn queue(limit: usize) -> ByteQueue {
    ByteQueue::new(limit, &Arc::new(Budget::new(1 << 30)))
}

fn put(queue: &ByteQueue, mut bytes: &[u8]) -> Result<usize, Errno> {
    queue.put(&mut bytes, &mut Tag::default())
}

fn take(queue: &ByteQueue, most: usize, how: How) -> Vec<u8> {
    let mut bytes = vec![0; most];
    let count = queue.take(&mut bytes.as_mut_slice(), how).map_or(0, |taken| taken.count);
    bytes.truncate(count);
    bytes
}

#[test]
fn keeps_order_and_limit() {
    let queue = queue(100_000);
    let all: Vec<u8> = (0..200_000u32).map(|n| (n % 251) as u8).collect();
    assert_eq!(put(&queue, &all), Ok(100_000));
    assert_eq!(put(&queue, &all), Err(Errno::EAGAIN));
    assert_eq!(take(&queue, 10, How { peek: true, ..How::default() }), all[..10]);
    assert_eq!(take(&queue, 70_000, How::default()), all[..70_000]);
    assert_eq!(put(&queue, &all[100_000..]), Ok(70_000));
    assert_eq!(take(&queue, 200_000, How::default()), all[70_000..170_000]);
    assert_eq!(queue.len(), 0);
}

#[test]
fn what_is_discarded_is_not_copied() {
    let queue = queue(1000);
    assert_eq!(put(&queue, b"0123456789"), Ok(10));
    let mut bytes = [7; 4];
    let how = How { discard: true, ..How::default() };
    assert_eq!(queue.take(&mut bytes.as_mut_slice(), how).map(|taken| taken.count), Ok(4));
    assert_eq!((bytes, queue.len()), ([7; 4], 6));
}

#[test]
fn urgent_bytes_stand_apart() {
    let queue = queue(1000);
    assert_eq!(put(&queue, b"abc"), Ok(3));
    queue.mark_urgent();
    assert_eq!(put(&queue, b"de"), Ok(2));
    assert_eq!(take(&queue, 10, How { peek: true, ..How::default() }), b"ab");
    assert_eq!(queue.urgent(), (true, false));
    assert_eq!(take(&queue, 10, How::default()), b"ab");
    assert_eq!(queue.urgent(), (true, true));
    assert_eq!(queue.take_urgent(false), Ok(b'c'));
    assert_eq!(queue.take_urgent(false), Err(Errno::EINVAL));
    assert_eq!(take(&queue, 10, How::default()), b"de");
    assert_eq!(put(&queue, b"x"), Ok(1));
    queue.mark_urgent();
    assert_eq!(take(&queue, 10, How { urgent_inline: true, ..How::default() }), b"x");
    assert_eq!((queue.urgent(), queue.take_urgent(false)), ((false, false), Err(Errno::EINVAL)));
}

#[test]
fn memory_that_cannot_be_reached() {
    struct Fault(usize);
    impl Source for Fault {
        fn left(&self) -> usize {
            1000
        }
        fn take(&mut self, to: &mut [u8]) -> usize {
            self.0.min(to.len())
        }
    }
    let queue = queue(1000);
    assert_eq!(queue.put(&mut Fault(0), &mut Tag::default()), Err(Errno::EFAULT));
    assert_eq!(queue.len(), 0);
}

#[test]
fn memory_is_given_back() {
    let budget = Arc::new(Budget::new(2 * CHUNK));
    let queue = ByteQueue::new(10 * CHUNK, &budget);
    assert_eq!(put(&queue, &vec![1; 3 * CHUNK]), Ok(2 * CHUNK));
    assert_eq!(put(&queue, &[1]), Err(Errno::ENOBUFS));
    assert_eq!((queue.close(), budget.used()), (2 * CHUNK, 0));
    assert_eq!(put(&queue, &[1]), Err(Errno::EPIPE));
}

#[test]
fn both_ends_at_once() {
    let queue = Arc::new(queue(100_000));
    let other = Arc::clone(&queue);
    let total = 5_000_000usize;
    let writer = std::thread::spawn(move || {
        let mut at = 0usize;
        while at < total {
            let bytes: Vec<u8> = (at..total.min(at + 60_000)).map(|n| (n % 253) as u8).collect();
            at += put(&other, &bytes).unwrap_or(0);
        }
    });
    let mut at = 0usize;
    while at < total {
        for byte in take(&queue, 50_000, How::default()) {
            assert_eq!(byte, (at % 253) as u8);
            at += 1;
        }
    }
    assert!(writer.join().is_ok());
}

/// `cargo test --release … -- --ignored --nocapture throughput`: bytes a second through a queue, writes and reads of 64 KiB.
#[test]
#[ignore = "a measurement"]
fn throughput() {
    let total = 4usize << 30;
    let bytes = vec![1u8; 65_536];
    let queue = Arc::new(queue(512 * 1024));
    let mut to = vec![0u8; 65_536];
    let start = std::time::Instant::now();
    for _ in 0..total / bytes.len() {
        assert_eq!(put(&queue, &bytes), Ok(bytes.len()));
        assert_eq!(
            queue.take(&mut to.as_mut_slice(), How::default()).map(|taken| taken.count),
            Ok(bytes.len())
        );
    }
    println!("one thread: {:.1} GiB/s", 4.0 / start.elapsed().as_secs_f64());
    let other = Arc::clone(&queue);
    let start = std::time::Instant::now();
    let writer = std::thread::spawn(move || {
        let mut left = total;
        while left > 0 {
            match put(&other, &bytes[..bytes.len().min(left)]) {
                Ok(count) => left -= count,
                Err(_) => std::thread::yield_now(),
            }
        }
    });
    let mut left = total;
    while left > 0 {
        match queue.take(&mut to.as_mut_slice(), How::default()).map_or(0, |taken| taken.count) {
            0 => std::thread::yield_now(),
            count => left -= count,
        }
    }
    assert!(writer.join().is_ok());
    println!("two threads: {:.1} GiB/s", 4.0 / start.elapsed().as_secs_f64());
}
