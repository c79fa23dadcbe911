"""What can go wrong, in words for the people concerned. These errors know no HTTP: `web` gives them their codes."""


class TaggerError(Exception):
    """Base of all errors of this package; its text is fit to be shown."""


class SettingsError(TaggerError):
    """A setting has a value that is not accepted."""


class ModelError(TaggerError):
    """A model folder can't be used: missing, incomplete, or not for the chosen device."""


class RequestError(TaggerError):
    """A whole request can't be treated; says what was wrong and what is accepted."""


class TooManyDocumentsError(RequestError):
    """A request has more documents than the settings allow."""


class DocumentError(TaggerError):
    """One document can't be treated; its neighbours can."""


class NotReadyError(TaggerError):
    """The model is still loading, or could not be loaded."""


class BusyError(TaggerError):
    """As many documents wait as the settings allow."""
