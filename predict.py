"""What is on these images?  python predict.py IMAGE|FOLDER|URL...   (see --help)"""

import sys

from objrec.predict import main

if __name__ == "__main__":
    sys.exit(main())
