//! Tables of measured times as files, and the database as several processes use it.

use super::*;

/// A table of what ResNet-18 needs, made up.
fn table(dir: &Path) -> PathBuf {
    let db = dir.join("made-up.sqlite");
    compile(&db, "9.19.0", Precision::Tf32);
    let times = BenchDb::open_to_read(&db).expect("just made").times(&on("9.19.0")).expect("rows");
    let path = dir.join("made-up.times");
    std::fs::write(&path, times.to_string()).expect("a file");
    path
}

fn read(path: &Path) -> Measured {
    std::fs::read_to_string(path).expect("a table").parse().expect("a table")
}

#[test]
fn tables_go_in_and_out_and_replay_without_a_gpu() {
    let dir = tempfile::tempdir().unwrap();
    let (times, db, out) = (table(dir.path()), dir.path().join("db"), dir.path().join("out.times"));
    let said = works(&["profile", "--db", text(&db), "--import", text(&times), "--export", text(&out)]);
    assert!(said.contains("Made-up GPU (compute capability 9.0), driver 13.0, cuDNN 9.19.0"), "{said}");
    assert_eq!(std::fs::read(&times).unwrap(), std::fs::read(&out).unwrap());
    let replay = |source: &Path, more: &[&str]| {
        let args = ["profile", "--db", text(&db), "--replay", text(source), "resnet18"];
        [&args[..], more].concat().into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    for source in [&times, &db] {
        let pruned = dir.path().join("pruned.times");
        let _ = std::fs::remove_file(&pruned);
        let args = replay(source, &["--batch", "4", "-o", text(&pruned)]);
        let said = works(&args.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(said.contains(", 0 missing") && said.contains(" rows  conv"), "{said}");
        assert!(!said.contains("missing  "), "{said}");
        assert_eq!(read(&pruned), read(&times));
    }
    // Another batch needs other rows.
    let args = replay(&times, &["--batch", "5"]);
    let message = fails(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(message.contains("kernels are missing"), "{message}");
}

#[test]
fn an_export_of_several_devices_asks_which() {
    let dir = tempfile::tempdir().unwrap();
    let (db, out) = (dir.path().join("db"), dir.path().join("out.times"));
    compile(&db, "9.19.0", Precision::Tf32);
    compile(&db, "9.20.0", Precision::Tf32);
    let args = ["profile", "--db", text(&db), "--export", text(&out)];
    let message = fails(&args);
    assert!(message.contains("cuDNN 9.19.0: ") && message.contains("--select"), "{message}");
    assert!(!out.exists());
    works(&[&args[..], &["--select", "cuDNN 9.20"]].concat());
    assert_eq!(read(&out).on.cudnn, "9.20.0");
    assert!(fails(&[&args[..], &["--select", "P100"]].concat()).contains("none of these is `P100`"));
}

#[test]
fn several_processes_fill_one_database() {
    let dir = tempfile::tempdir().unwrap();
    let (times, db) = (table(dir.path()), dir.path().join("new/db"));
    let whole = std::fs::read_to_string(&times).expect("the table");
    let (head, rows) = whole.split_once('\n').expect("a header");
    let rows: Vec<&str> = rows.lines().collect();
    // Parts that overlap, so that the same rows come from several processes.
    let running: Vec<_> = (0..6)
        .map(|part| {
            let mine: Vec<&str> =
                rows.iter().enumerate().filter(|(i, _)| i % 6 <= part).map(|r| *r.1).collect();
            let file = dir.path().join(format!("part{part}"));
            std::fs::write(&file, format!("{head}\n{}\n", mine.join("\n"))).expect("a file");
            std::process::Command::new(vdnn_tests::data::vdnnc_binary())
                .args(["profile", "--db", text(&db), "--import", text(&file)])
                .stdout(std::process::Stdio::null())
                .spawn()
                .expect("the command starts")
        })
        .collect();
    for mut child in running {
        assert!(child.wait().expect("it ends").success());
    }
    let stored = BenchDb::open_to_read(&db).expect("the database").times(&on("9.19.0")).expect("rows");
    assert_eq!(stored.to_string(), whole);
}

#[test]
fn other_files_in_the_databases_place_are_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (times, db, out) = (table(dir.path()), dir.path().join("notes.txt"), dir.path().join("out.times"));
    std::fs::write(&db, "not a database, but mine\n").expect("a file");
    for args in [["--import", text(&times)], ["--export", text(&out)]] {
        let message = fails(&[&["profile", "--db", text(&db)][..], &args].concat());
        assert!(message.contains("notes.txt: not a database of kernel times"), "{message}");
    }
    assert_eq!(std::fs::read_to_string(&db).unwrap(), "not a database, but mine\n");
    let message = fails(&["profile", "--db", text(&dir.path().join("none")), "--export", text(&out)]);
    assert!(message.contains("there is no such database"), "{message}");
    // A table that does not say what it is of.
    std::fs::write(&times, "vdnnc-times 1; device=x; driver=13.0; cudnn=9.19.0\n").expect("a file");
    let message = fails(&["profile", "--db", text(&out), "--import", text(&times)]);
    assert!(message.contains("does not say its capability") && !out.exists(), "{message}");
}
