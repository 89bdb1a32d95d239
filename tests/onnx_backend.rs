//! scan
use vdnn_tests::conformance::*;
fn main() {
    let suite = suite().expect("suite");
    for category in ["node", "pytorch-converted", "pytorch-operator", "simple"] {
        for case in cases(&suite, category).unwrap() {
            let o = run(&case);
            let text = match o {
                Outcome::Passed(k) => format!("PASS {k:?}"),
                Outcome::Refused(e) => format!("REFUSED {}", e.to_string().replace('\n', " ")),
                Outcome::Wrong(e) => format!("WRONG {}", e.replace('\n', " ")),
                Outcome::Panicked(e) => format!("PANIC {}", e.replace('\n', " ")),
            };
            println!("{}\t{}\t{}", case.name, case.row(), text);
        }
    }
}
