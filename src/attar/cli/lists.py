"""`attar lists`: from the official lists of Li et al. to a manifest of one's own copy."""

from pathlib import Path


def lists(
    folder: Path,
    /,
    *,
    images: Path,
    out: Path,
    allow_missing: bool = False,
    test_share: float | None = None,
) -> None:
    """Turn the official lists of Li et al. (ICCV 2023) into a manifest of your copy of a dataset.

    OUT then holds `manifest.csv` (path, label and the splits train, test_id and unseen_classes),
    `classes.txt` and, where the classes have descriptions, `descriptions.json`. Images are found by
    their file names, so the copy may keep its own folders.

    For example:

    `attar lists data/CaltechBirds --images CUB_200_2011/images --out birds`

    `attar distill --config recipes/li2023/birds-resnet18.yaml --data birds/manifest.csv
    --classes birds/classes.txt --out runs/birds-resnet18`

    Parameters
    ----------
    folder
        A dataset's folder of their repository's data/: train_data.txt, val_data.txt,
        val_on_train_data.txt, label2text.txt, chatgpt.txt.
    images
        The dataset's images, as they were unpacked.
    out
        Folder for the manifest and the class lists.
    allow_missing
        Leave out listed images that the copy lacks, instead of stopping.
    test_share
        For tiered-ImageNet, which has no lists: take the classes of IMAGES/train as seen, those of
        IMAGES/val as unseen, and keep this share of the seen ones' images for the test.
    """
    from attar.data.class_lists import draw_lists, read_official_lists, write_manifest

    if test_share is None:
        found = read_official_lists(folder)
    else:
        found = draw_lists(folder, images, test_share=test_share)
    manifest = write_manifest(found, images, out, allow_missing=allow_missing)
    print(f"{manifest}: {found.describe()}")
    if found.descriptions and found.undescribed:
        print(f"without a description, so the plain prompt: {', '.join(found.undescribed)}")
