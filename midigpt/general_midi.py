"""The names of General MIDI level 1: 128 programs in 16 families of eight, counted from 0, and kinds of drums."""

_NAMES = {
    "piano": "grand piano, bright piano, electric grand, honky-tonk piano, electric piano 1, electric piano 2,"
    " harpsichord, clavinet",
    "chromatic percussion": "celesta, glockenspiel, music box, vibraphone, marimba, xylophone, tubular bells, dulcimer",
    "organ": "drawbar organ, percussive organ, rock organ, church organ, reed organ, accordion, harmonica,"
    " tango accordion",
    "guitar": "nylon guitar, steel guitar, jazz guitar, clean guitar, muted guitar, overdriven guitar,"
    " distortion guitar, guitar harmonics",
    "bass": "acoustic bass, fingered bass, picked bass, fretless bass, slap bass 1, slap bass 2, synth bass 1,"
    " synth bass 2",
    "strings": "violin, viola, cello, contrabass, tremolo strings, pizzicato strings, harp, timpani",
    "ensemble": "string ensemble 1, string ensemble 2, synth strings 1, synth strings 2, choir aahs, voice oohs,"
    " synth voice, orchestra hit",
    "brass": "trumpet, trombone, tuba, muted trumpet, french horn, brass section, synth brass 1, synth brass 2",
    "reed": "soprano sax, alto sax, tenor sax, baritone sax, oboe, english horn, bassoon, clarinet",
    "pipe": "piccolo, flute, recorder, pan flute, blown bottle, shakuhachi, whistle, ocarina",
    "synth lead": "square lead, sawtooth lead, calliope lead, chiff lead, charang lead, voice lead, fifths lead,"
    " bass and lead",
    "synth pad": "new age pad, warm pad, polysynth pad, choir pad, bowed pad, metallic pad, halo pad, sweep pad",
    "synth effects": "rain, soundtrack, crystal, atmosphere, brightness, goblins, echoes, sci-fi",
    "ethnic": "sitar, banjo, shamisen, koto, kalimba, bagpipe, fiddle, shanai",
    "percussive": "tinkle bell, agogo, steel drums, woodblock, taiko drum, melodic tom, synth drum, reverse cymbal",
    "sound effects": "fret noise, breath noise, seashore, bird tweet, telephone ring, helicopter, applause, gunshot",
}
FAMILIES = list(_NAMES)
PROGRAMS = [name for names in _NAMES.values() for name in names.split(", ")]
# The kinds of drums, from low to high; what General MIDI's key map has besides is percussion.
DRUM_KINDS = {
    "kick": (35, 36),
    "snare": (37, 38, 39, 40),
    "toms": (41, 43, 45, 47, 48, 50),
    "hi-hat": (42, 44, 46),
    "cymbals": (49, 51, 52, 53, 55, 57, 59),
    "percussion": (),
}


def instrument(program: str) -> str:
    """The name of a program, written as a number, or "d"."""
    return "drums" if program == "d" else PROGRAMS[int(program)]


def read_instrument(name: str) -> str | None:
    """The program of that number or name, as a number, or "d" for drums; None where there is none."""
    if name in ("d", "drums"):
        return "d"
    if name.isdecimal() and int(name) < len(PROGRAMS):
        return str(int(name))
    return str(PROGRAMS.index(name)) if name in PROGRAMS else None


def drum_kind(pitch: int) -> str:
    """The kind of drum on a key of the drum channel."""
    return next((kind for kind, pitches in DRUM_KINDS.items() if pitch in pitches), "percussion")
