"""From the declarations of the steps to an Azure ML job. Runs on the user's machine and is no part of the snapshot."""
