//! A client in bad surroundings: output that can't be written, a terminal that is closed, too few connections.

use rustix::process::Signal;

use crate::harness::{LIMIT, eventually};
use crate::plain::{Plain, Service};

/// 74: the task ran, so a caller that takes the code for *try again* would run it twice.
#[test]
fn an_output_that_cannot_be_written_is_74_and_the_outcome_stays() {
    let service = Service::new("full-output", &["--slots", "2"]);
    let full = |args: &[&str]| Plain::on(&service.cluster, args).stdout_to("/dev/full");
    for args in [&["submit", "echo kept"][..], &["submit", "--json", "echo kept"]] {
        let out = full(args).run();
        let (id, task, _) = service.cluster.tasks().pop().expect("its outcome stays");
        assert!(task.outcome.is_some(), "it ended: {task:?}");
        out.says(74, &["cannot write the results", "No space left", &format!("zkmw wait {id}")]);
        let out = Plain::on(&service.cluster, &["wait", id.as_str()]).run();
        assert_eq!((out.code, out.text().as_str()), (0, "kept\n"), "{out:?}");
        service.cluster.tree.delete(&service.cluster.layout.task(&id)).expect("deleted");
    }
    let out = full(&["submit", "--from-file", "-"]).stdin(b"echo one\necho two\n").run();
    let id = service.cluster.tasks().pop().expect("what was not shown stays").0;
    let batch = id.dir().split('~').next().expect("the batch's name");
    out.says(74, &["cannot write the results", &format!("zkmw wait {batch} ")]);
    let out = full(&["submit", "--detach", "echo x"]).run();
    out.says(74, &["was submitted: zkmw wait "]);
    for args in [&["status"][..], &["list"], &["show", id.as_str()], &["cancel", "--json", id.as_str()]] {
        full(args).run().says(74, &["cannot write the results"]);
    }
}

#[test]
fn closing_the_terminal_interrupts_a_wait_except_under_nohup() {
    let service = Service::new("hang-up", &[]);
    let gate = service.cluster.dir().join("gate");
    let line = format!("until [ -e {} ]; do sleep .05; done; echo came", gate.display());
    let submit = |how: &str| Plain::on(&service.cluster, &["submit", &line]).through(&["env", how]).spawn();
    let mut closed = submit("--default-signal=HUP");
    let id = service.cluster.the_task();
    service.cluster.assigned(&id);
    closed.signal(Signal::HUP);
    closed.end(LIMIT).says(129, &["interrupted", &format!("zkmw wait {id}")]);
    let mut kept = submit("--ignore-signal=HUP");
    eventually(LIMIT, "there are two", || (service.cluster.tasks().len() == 2).then_some(()));
    kept.signal(Signal::HUP);
    std::fs::write(&gate, "").expect("opened");
    let out = kept.end(LIMIT);
    assert_eq!((out.code, out.text().as_str()), (0, "came\n"), "{out:?}");
}
