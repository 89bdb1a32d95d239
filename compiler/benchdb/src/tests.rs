//! Round trips, keys, several writers, and files that are something else.

use super::*;
use vdnn_cost::{MeasuredRow, Precision};
use vdnn_ir::op::UnaryKind;
use vdnn_ir::{Op, TensorType};

fn on(device: &str, cudnn: &str) -> MeasuredOn {
    MeasuredOn {
        device: device.to_owned(),
        capability: "9.0".to_owned(),
        driver: "13.0".to_owned(),
        cudnn: cudnn.to_owned(),
        date: "2026-11-21".to_owned(),
    }
}

/// A ReLU on tensors of these sizes; the times are the sizes, and 3 does not run.
fn relus(on: MeasuredOn, sizes: impl IntoIterator<Item = u64>) -> Measured {
    let mut table = Measured::new(on);
    for n in sizes {
        let ty = TensorType::f32([n]);
        let time = (n != 3).then_some(Nanos(n));
        let row = MeasuredRow { algo: None, workspace: Bytes(7), time, flags: vec!["fft".to_owned()] };
        table.insert(&Op::Unary(UnaryKind::Relu), &[&ty], &[&ty], Precision::F32, row);
    }
    table
}

/// The shipped table, whose rows are all kinds there are.
fn shipped() -> Measured {
    let model = vdnn_cost::CostModel::named("h200", Precision::F32).expect("a shipped profile");
    model.measured().clone()
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

#[test]
fn the_shipped_table_comes_back_as_it_went_in() {
    let dir = folder();
    let path = dir.path().join("deep/er/bench.sqlite");
    let table = shipped();
    BenchDb::open(&path).expect("a new database").add(&table).expect("rows");
    let db = BenchDb::open_to_read(&path).expect("the same");
    assert_eq!(db.times(&table.on).expect("rows").to_string(), table.to_string());
    assert_eq!(db.sources().expect("sources"), [(table.on.clone(), table.len() as u64)]);
    assert!(looks_like_database(&path));
}

#[test]
fn keys_are_unique_and_sources_apart() {
    let dir = folder();
    let mut db = BenchDb::open(&dir.path().join("b")).expect("a new database");
    let (a, b) = (on("A", "9.1.0"), on("A", "9.2.0"));
    db.add(&relus(a.clone(), 1..=4)).expect("rows");
    db.add(&relus(b.clone(), [9])).expect("rows");
    // Again, with another time and a later day: replaced, not added.
    let mut again = relus(MeasuredOn { date: "2026-12-01".to_owned(), ..a.clone() }, []);
    let ty = TensorType::f32([3]);
    let row = MeasuredRow { algo: None, workspace: Bytes(0), time: Some(Nanos(55)), flags: Vec::new() };
    again.insert(&Op::Unary(UnaryKind::Relu), &[&ty], &[&ty], Precision::F32, row);
    db.add(&again).expect("a row");
    let table = db.times(&a).expect("rows");
    assert_eq!((table.len(), table.on.date.as_str()), (4, "2026-12-01"));
    let relu = Op::Unary(UnaryKind::Relu);
    assert_eq!(table.rows(&relu, &[&ty], &[&ty], Precision::Tf32).expect("a row")[0].time, Some(Nanos(55)));
    assert_eq!(db.times(&b).expect("rows").len(), 1);
    for other in [on("B", "9.1.0"), MeasuredOn { driver: "12.9".to_owned(), ..a.clone() }] {
        assert!(db.times(&other).expect("none").is_empty(), "{other}");
    }
    let counts: Vec<u64> = db.sources().expect("sources").into_iter().map(|s| s.1).collect();
    assert_eq!(counts, [4, 1]);
}

#[test]
fn what_does_not_run_is_kept() {
    let dir = folder();
    let mut db = BenchDb::open(&dir.path().join("b")).expect("a new database");
    let table = relus(on("A", "9"), [3]);
    db.add(&table).expect("a row");
    assert_eq!(db.times(&table.on).expect("rows"), table);
    let ty = TensorType::f32([3]);
    let relu = Op::Unary(UnaryKind::Relu);
    let rows = table.rows(&relu, &[&ty], &[&ty], Precision::F32).expect("a row");
    assert_eq!(rows[0].time, None);
}

#[test]
fn several_writers_at_once_lose_nothing() {
    let dir = folder();
    let path = dir.path().join("b");
    let source = on("A", "9.19.0");
    std::thread::scope(|scope| {
        for writer in 0..8u64 {
            let (path, source) = (&path, &source);
            scope.spawn(move || {
                // Opened here, so that all race to make the tables, too.
                let mut db = BenchDb::open(path).expect("a database");
                for i in 0..10 {
                    // Half of them are everyone's.
                    let sizes = [100 + i, 1000 * (writer + 1) + i];
                    db.add(&relus(source.clone(), sizes)).expect("rows");
                }
            });
        }
    });
    let all = relus(source.clone(), (100..110).chain((1..=8).flat_map(|w| 1000 * w..1000 * w + 10)));
    assert_eq!(BenchDb::open_to_read(&path).expect("the same").times(&source).expect("rows"), all);
}

#[test]
fn what_a_killed_process_had_begun_is_undone() {
    let dir = folder();
    let path = dir.path().join("b");
    let source = on("A", "9");
    BenchDb::open(&path).expect("a new database").add(&relus(source.clone(), [1, 2])).expect("rows");
    let begun = Connection::open(&path).expect("the same");
    // Little memory, so that pages are written before the end of the transaction.
    begun.pragma_update(None, "cache_size", 5).expect("a setting");
    begun.execute_batch("BEGIN IMMEDIATE; UPDATE time SET ns = 77;").expect("a change");
    for i in 0..2000 {
        let name = format!("{i} {}", "x".repeat(200));
        begun
            .execute("INSERT INTO kernel (op, operands, precision) VALUES (?1, '', '')", [name])
            .expect("a row");
    }
    for (n, opens) in [BenchDb::open, BenchDb::open_to_read].into_iter().enumerate() {
        // As the files would be found if the process ended here.
        let left = dir.path().join(format!("left{n}"));
        let journal = |p: &Path| PathBuf::from(format!("{}-journal", p.display()));
        std::fs::copy(&path, &left).expect("a copy");
        std::fs::copy(journal(&path), journal(&left)).expect("a copy");
        assert_ne!(left.metadata().expect("a file").len(), 0);
        let db = opens(&left).expect("it is undone");
        assert_eq!(db.times(&source).expect("rows"), relus(source.clone(), [1, 2]));
    }
}

/// Opening must fail with `what` in its message and leave every byte.
fn refused(path: &Path, what: &str) {
    let before = std::fs::read(path).expect("the file");
    for result in [BenchDb::open(path), BenchDb::open_to_read(path)] {
        let message = result.expect_err("not a database to use").to_string();
        assert!(message.contains(what) && message.contains(&path.display().to_string()), "{message}");
    }
    assert_eq!(std::fs::read(path).expect("the file"), before);
    let names: Vec<_> = std::fs::read_dir(path.parent().expect("a folder")).expect("a folder").collect();
    assert_eq!(names.len(), 1, "{names:?}");
}

#[test]
fn other_files_are_refused_and_left_alone() {
    let dir = folder();
    let path = dir.path().join("b");
    for text in ["vdnnc-times 1; device=x\n", "x", "SQLite format 3\0"] {
        std::fs::write(&path, text).expect("a file");
        refused(&path, "not a database of kernel times");
    }
    std::fs::remove_file(&path).expect("the file");
    let other = Connection::open(&path).expect("a database");
    other.execute_batch("CREATE TABLE recipes (name TEXT)").expect("a table");
    drop(other);
    refused(&path, "not a database of kernel times");
    assert!(matches!(BenchDb::open_to_read(&dir.path().join("none")), Err(DbError::Missing { .. })));
    assert!(!dir.path().join("none").exists());
}

#[test]
fn other_versions_are_refused_and_left_alone() {
    let dir = folder();
    let path = dir.path().join("b");
    BenchDb::open(&path).expect("a new database").add(&relus(on("A", "9"), [1])).expect("a row");
    let db = Connection::open(&path).expect("the same");
    db.pragma_update(None, "user_version", 2).expect("another version");
    drop(db);
    refused(&path, "schema version 2, this program uses 1");
}

#[test]
fn damage_is_found_and_left_alone() {
    let dir = folder();
    let path = dir.path().join("b");
    BenchDb::open(&path).expect("a new database").add(&shipped()).expect("rows");
    let whole = std::fs::read(&path).expect("the file");
    // Cut short in the middle, and a page overwritten.
    std::fs::write(&path, &whole[..whole.len() / 2]).expect("a file");
    refused(&path, "damaged");
    let mut bytes = whole.clone();
    let middle = bytes.len() / 2 / 4096 * 4096;
    bytes[middle..middle + 4096].fill(0xa5);
    std::fs::write(&path, &bytes).expect("a file");
    refused(&path, "damaged");
    // A row that is no row.
    std::fs::write(&path, &whole).expect("a file");
    let db = Connection::open(&path).expect("the same");
    db.execute("UPDATE kernel SET op = 'nonsense' WHERE id = 5", []).expect("a row");
    drop(db);
    let message = BenchDb::open(&path).expect("sound pages").times(&shipped().on).expect_err("a bad row");
    assert!(message.to_string().contains("nonsense"), "{message}");
}
