"""The figure that all pictures are; imported when one is made, as matplotlib is."""

import io

from matplotlib.figure import Figure


class Picture(Figure):
    """A figure that notebooks display.

    Notebooks know matplotlib's figures only once `pyplot` has made one; any other
    they show as `<Figure size 840x480>`.
    """

    def _repr_png_(self) -> bytes:
        """Returns the picture as PNG, for IPython."""
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()
