//! What a run never does: spoil or lose what others did, or delete without a copy.

use super::*;

#[tokio::test]
async fn an_archived_dataset_is_refused_before_any_side_effect() {
    let world = World::with(&[]);
    world.catalogue.add_datablock(&world.dataset, &world.dataset.tar_key(0), 1);
    let error = world.archiver().begin(&world.dataset).await.unwrap_err();
    assert!(error.already_archived() && error.hint().is_some(), "{error}");
    assert_eq!(world.store.calls(), [format!("list {}", world.dataset.raw_files_prefix())]);
    assert_eq!(world.catalogue.calls(), ["datablocks"]);
}

#[tokio::test]
async fn a_dataset_whose_run_died_between_two_registrations_is_refused_with_what_is_missing() {
    let world = World::large();
    let run = world.begin().await;
    let cancel = CancellationToken::new();
    for (number, datablock) in planned(&run).await.unwrap().datablocks.iter().enumerate() {
        let stored = run.store(datablock, &cancel, &Progress::none()).await.unwrap();
        let verified = run.verify(stored, &cancel, &Progress::none()).await.unwrap();
        if number == 0 {
            run.register(verified).await.unwrap();
        }
    }
    let error = world.archiver().begin(&world.dataset).await.unwrap_err();
    assert!(!error.already_archived());
    insta::assert_snapshot!(error, @r#"archive 20.500/x: it is archived in part: the registered datablocks ("openem-network/datasets/20.500/x/datablocks/20.500-x_0.tar") do not hold 2 files of the landing zone ("huge.mrc", "z")"#);
    assert!(error.hint().unwrap().contains("Remove these datablocks"), "{error:?}");

    // Were a file of the datablock gone, nobody may be told to remove it.
    world.store.remove(&world.landed("big.mrc"));
    let error = world.archiver().begin(&world.dataset).await.unwrap_err();
    assert!(error.hint().unwrap().contains("keep the datablocks: they hold the only copy of 1 files"));
    assert_eq!((world.landing_keys().len(), world.archive_keys().len()), (2, 2));
}

#[tokio::test]
async fn a_dataset_whose_landing_zone_was_not_emptied_is_told_from_one_that_lacks_files() {
    let world = World::small();
    archived(&world.begin().await).await.unwrap();
    let error = world.archiver().begin(&world.dataset).await.unwrap_err();
    assert!(matches!(error, ArchiveError::AlreadyArchived { left: 3, .. }), "{error:?}");
    assert!(error.hint().unwrap().contains("the 3 files that are still in the landing zone"));
}

#[tokio::test]
async fn a_run_gives_way_to_another_that_was_faster() {
    let world = World::large();
    let (slow, fast) = (world.begin().await, world.begin().await);
    let plan = planned(&slow).await.unwrap();
    let cancel = CancellationToken::new();
    let stored = slow.store(&plan.datablocks[0], &cancel, &Progress::none()).await.unwrap();
    let verified = slow.verify(stored, &cancel, &Progress::none()).await.unwrap();
    // Both began when there was nothing; the tar of the first is now in the way of the second.
    let error = fast.store(&plan.datablocks[0], &cancel, &Progress::none()).await.unwrap_err();
    assert!(matches!(error, ArchiveError::Occupied { .. }), "{error:?}");

    world.catalogue.add_datablock(&world.dataset, &world.dataset.tar_key(0), 1);
    assert!(slow.register(verified).await.unwrap_err().already_archived());
    let report = slow.undo().await;
    assert_eq!((report.deleted_records, report.deleted_objects), (0, 0), "{report:?}");
    assert_eq!(world.catalogue.archive_ids(&world.dataset).len(), 1);
}

#[tokio::test]
async fn undo_keeps_the_record_of_another_run_whether_it_was_met_or_not() {
    for refused in [true, false] {
        let world = World::small();
        let run = world.begin().await;
        world.catalogue.set_fault(move |call| {
            (call == "register_datablock").then(|| {
                let (action, message) = (call.to_owned(), "taken".to_owned());
                if refused {
                    crate::CatalogueError::Refused { action, status: 409, message }
                } else {
                    catalogue_unavailable(call)
                }
            })
        });
        archived(&run).await.unwrap_err();
        world.catalogue.add_datablock(&world.dataset, &world.dataset.tar_key(0), 1);
        let report = run.undo().await;
        assert_eq!((report.deleted_records, report.deleted_objects), (0, 0), "{report:?}");
        assert_eq!((world.catalogue.archive_ids(&world.dataset).len(), world.archive_keys().len()), (1, 1));
    }
}

#[tokio::test]
async fn undo_removes_what_the_run_did_and_nothing_else() {
    let world = World::large();
    let run = world.begin().await;
    let foreign =
        ObjectAddress::new(&world.sites.archive, &"20.500/other".parse::<DatasetId>().unwrap().tar_key(0));
    world.store.insert(foreign.clone(), "another dataset's", None);
    archived(&run).await.unwrap();
    let report = run.undo().await;
    assert_eq!(
        (report.deleted_records, report.deleted_objects, report.problems.len()),
        (2, 2, 0),
        "{report:?}"
    );
    assert_eq!(world.archive_keys(), [foreign.key.to_string()]);
    assert_eq!(world.catalogue.archive_ids(&world.dataset), [] as [&str; 0]);
    assert_eq!(world.landing_keys().len(), 3);
    assert_eq!(run.undo().await, UndoReport::default());
}

#[tokio::test]
async fn undo_keeps_a_tar_that_was_there_before_or_that_the_catalogue_names() {
    let world = World::large();
    world.store.insert(world.tar(0), "a dead run's", None);
    let run = world.begin().await;
    let plan = planned(&run).await.unwrap();
    for datablock in &plan.datablocks {
        run.store(datablock, &CancellationToken::new(), &Progress::none()).await.unwrap();
    }
    // Meanwhile another run registers the second one.
    world.catalogue.add_datablock(&world.dataset, &world.dataset.tar_key(1), 1);
    let report = run.undo().await;
    assert_eq!(
        (report.deleted_objects, report.deleted_records, report.problems.len()),
        (0, 0, 2),
        "{report:?}"
    );
    assert_eq!(world.archive_keys().len(), 2);
}

#[tokio::test]
async fn undo_touches_no_tar_while_the_catalogue_is_silent_or_keeps_its_record() {
    for failing in ["datablocks", "delete_datablock"] {
        let world = World::small();
        let run = world.begin().await;
        archived(&run).await.unwrap();
        world.catalogue.set_fault(move |call| (call == failing).then(|| catalogue_unavailable(call)));
        let report = run.undo().await;
        assert!(!report.problems.is_empty() && report.deleted_objects == 0, "{report:?}");
        assert_eq!(world.archive_keys().len(), 1);
    }
}

#[tokio::test]
async fn undo_removes_a_record_whose_registration_got_no_answer() {
    let world = World::small();
    let run = world.begin().await;
    world.catalogue.lose_answers_to_registrations();
    archived(&run).await.unwrap_err();
    assert_eq!(world.catalogue.archive_ids(&world.dataset).len(), 1);
    let report = run.undo().await;
    assert_eq!((report.deleted_records, report.deleted_objects), (1, 1), "{report:?}");
}

#[tokio::test]
async fn nothing_is_undone_once_the_landing_zone_is_being_emptied() {
    let world = World::small();
    let run = world.begin().await;
    let archived = archived(&run).await.unwrap();
    world.store.set_fault(|call, _| (call == "delete").then(|| unavailable("delete")));
    run.release(&archived).await.unwrap_err();
    world.store.clear_fault();
    assert_eq!(run.undo().await, UndoReport::default());
    assert_eq!((world.archive_keys().len(), world.catalogue.archive_ids(&world.dataset).len()), (1, 1));
}

#[tokio::test]
async fn release_keeps_objects_that_changed_or_came_later() {
    for hide_tags in [false, true] {
        let world = World::small();
        if hide_tags {
            world.store.hide_tags_in_listings();
        }
        let run = world.begin().await;
        let archived = archived(&run).await.unwrap();
        world.store.insert(world.landed("a.txt"), "ALPHA", None);
        world.store.insert(world.landed("late"), "x", None);
        world.store.replace_in_the_same_instant(&world.landed("b/ünï.dat"), vec![8; 3000]);
        let released = run.release(&archived).await.unwrap();
        assert_eq!((released.deleted, released.kept.len()), (1, 3), "{released:?}");
        assert_eq!(
            world.landing_keys(),
            [world.landed("a.txt"), world.landed("b/ünï.dat"), world.landed("late")]
                .map(|at| at.key.to_string())
        );
    }
}

#[tokio::test]
async fn release_looks_at_each_object_again_before_it_is_deleted() {
    let world = World::small();
    let run = world.begin().await;
    let archived = archived(&run).await.unwrap();
    // Replaced after the listing; and, unseen by the look, before the deletion.
    let (store, listed) = (Arc::clone(&world.store), world.landed("a.txt"));
    let (late, mut emptying) = (world.landed("b/ünï.dat"), false);
    world.store.set_fault(move |call, key| {
        emptying |= call == "list";
        if emptying && call == "head" && key == listed.key.as_str() {
            store.replace_in_the_same_instant(&listed, "ALPHA");
        }
        if call == "delete" && key == late.key.as_str() {
            store.replace_in_the_same_instant(&late, vec![8; 3000]);
        }
        None
    });
    let released = run.release(&archived).await.unwrap();
    world.store.clear_fault();
    assert_eq!((released.deleted, released.kept.len()), (1, 2), "{released:?}");
    assert_eq!(world.store.content(&world.landed("a.txt")).unwrap().as_ref(), b"ALPHA");
    assert_eq!(world.store.content(&world.landed("b/ünï.dat")).unwrap().as_ref(), vec![8; 3000]);
}

#[tokio::test]
async fn nothing_is_released_without_the_tar_and_its_record() {
    for without_tar in [true, false] {
        let world = World::small();
        let run = world.begin().await;
        let archived = archived(&run).await.unwrap();
        if without_tar {
            world.store.remove(&world.tar(0));
        } else {
            let id = &archived[0].registered().id;
            world.catalogue.delete_datablock(&world.dataset, id).await.unwrap();
        }
        let error = run.release(&archived).await.unwrap_err();
        assert!(
            matches!(
                error,
                ArchiveError::Unregistered { .. } | ArchiveError::Verify(VerifyError::Missing { .. })
            ),
            "{error:?}"
        );
        assert_eq!(world.landing_keys().len(), 3);
    }
}

#[tokio::test]
async fn a_tar_that_vanishes_while_it_is_registered_is_no_leave_to_delete() {
    let world = World::small();
    let run = world.begin().await;
    let plan = planned(&run).await.unwrap();
    let cancel = CancellationToken::new();
    let stored = run.store(&plan.datablocks[0], &cancel, &Progress::none()).await.unwrap();
    let verified = run.verify(stored, &cancel, &Progress::none()).await.unwrap();
    world.store.remove(&world.tar(0));
    assert!(run.register(verified).await.is_err());
}
