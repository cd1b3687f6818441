"""What the scores of a class are called."""

TITLES = {
    "dice": "Dice",
    "iou": "IoU",
    "precision": "precision",
    "recall": "recall",
    "dice_per_image": "Dice per image",
    "dice_per_case": "Dice per case",
    "hd95": "HD95",
    "surface_dice": "surface Dice",
}


def heading(key: str) -> str:
    """A score's title with a capital letter.

    Example:
        >>> heading("surface_dice")
        'Surface Dice'
    """
    return TITLES[key][0].upper() + TITLES[key][1:]
