//! Every input that the fuzz targets keep (`fuzz/corpus`) still holds: seeds, and what once failed.

#[path = "../../../fuzz/src/lib.rs"]
mod targets;

/// Runs a target on each of its inputs, and says which one it was where it fails.
fn replay(target: &str, check: fn(&[u8])) {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let input = std::fs::read(&path).unwrap();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        assert!(std::panic::catch_unwind(|| check(&input)).is_ok(), "fuzz/corpus/{target}/{name} fails, see above");
        seen += 1;
    }
    assert!(seen >= 20, "{seen}");
}

#[test]
fn kept_inputs_of_boundary_hold() {
    replay("boundary", targets::boundary);
}

#[test]
fn kept_inputs_of_chunk_hold() {
    replay("chunk", targets::chunk);
}

#[test]
fn kept_inputs_of_head_hold() {
    replay("head", targets::head);
}
