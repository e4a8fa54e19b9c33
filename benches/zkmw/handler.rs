//! The cheapest executor there can be, to measure the service and not its tasks: a handler that answers every task
//! at once. The program of the benchmark is started as it, with the argument `handler`. Must not do any work.

use std::io::{BufRead as _, Write as _};

/// Answers line by line until the input ends: `{"id":17, …}` with `{"id":17}`.
pub fn serve() {
    let mut input = std::io::stdin().lock();
    let mut output = std::io::stdout().lock();
    let mut line = Vec::with_capacity(4_096);
    loop {
        line.clear();
        match input.read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        // A handler that does not know the id must not answer: silence is noticed, a wrong answer might not be.
        let Some(id) = id_in(&line) else { return };
        let answered = output
            .write_all(b"{\"id\":")
            .and_then(|()| output.write_all(id))
            .and_then(|()| output.write_all(b"}\n"))
            .and_then(|()| output.flush());
        if answered.is_err() {
            return;
        }
    }
}

/// The value of the field `id`, a number or a string without escapes. Fields before it are numbers or such strings, so
/// the first `"id":` is it.
fn id_in(line: &[u8]) -> Option<&[u8]> {
    let name = b"\"id\":";
    let at = line.windows(name.len()).position(|window| window == name)? + name.len();
    let rest = line[at..].trim_ascii_start();
    let length = match rest.first()? {
        b'"' => rest[1..].iter().position(|byte| *byte == b'"')? + 2,
        _ => rest.iter().position(|byte| !byte.is_ascii_digit()).filter(|length| *length > 0)?,
    };
    Some(&rest[..length])
}
