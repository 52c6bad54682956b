// Phrases: how typed text becomes phrases, by the rules of efficientsam3/concepts.py and bpe.py.

const MAX_LENGTH = 10000;
const SPACE = /[\s\x1c-\x1f\x85]+/u;
const CONTROLS = /[\x00-\x08\x0b\x0e-\x1f\x7f\u206a-\u206f\ufeff\ufff9-\ufffc]/g;
const LIGATURES = {
  "Ĳ": "IJ", "ĳ": "ij", "ŉ": "ʼn", "Ǳ": "DZ", "ǲ": "Dz", "ǳ": "dz", "Ǆ": "DŽ", "ǅ": "Dž", "ǆ": "dž",
  "Ǉ": "LJ", "ǈ": "Lj", "ǉ": "lj", "Ǌ": "NJ", "ǋ": "Nj", "ǌ": "nj", "ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl",
  "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "ſt", "ﬆ": "st",
};

/** What a user typed cannot be asked; the message says why. */
export class PhraseError extends Error {}

/**
 * Split typed text at commas, and normalize the phrases.
 *
 * @param {string} typed The text.
 * @returns {{name: string, text: string}[]} Each phrase once: as it is shown, and as the tokenizer
 *   reads it.
 * @throws {PhraseError} There is no phrase, or one is none.
 */
export function readPhrases(typed) {
  const found = new Map();
  for (const part of typed.split(",").filter((part) => part.trim())) {
    const name = readPhrase(part), text = clean(name);
    if (!found.has(text)) found.set(text, { name, text });
  }
  if (!found.size) {
    throw new PhraseError("Type what to find, such as: person, yellow bus");
  }
  return [...found.values()];
}

/** Normalize one phrase. */
function readPhrase(phrase) {
  if (phrase.length > MAX_LENGTH) {
    throw new PhraseError(`A phrase has at most ${MAX_LENGTH} characters; this one has `
      + `${phrase.length}. Shorten it.`);
  }
  const odd = [...phrase].find((c) => /[\p{Cc}\p{Cs}]/u.test(c) && !SPACE.test(c));
  if (odd !== undefined) {
    const code = odd.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
    throw new PhraseError(`A phrase is text; this one contains the control character U+${code}. `
      + "Remove it.");
  }
  // Marks such as those of the writing direction; joiners and tags belong to words and emoji.
  const visible = phrase.replace(/(?![\u200c\u200d\u{e0020}-\u{e007f}])\p{Cf}/gu, "");
  const text = words(visible.normalize("NFC"));
  if (/^[\p{P}\p{Z}\p{M}\u200c\u200d]*$/u.test(text)) {
    throw new PhraseError(`A phrase is words, such as “person”; “${text || phrase}” has none.`);
  }
  return text;
}

/**
 * What the tokenizer reads of a phrase: characters repaired, entities resolved, in lower case.
 *
 * Text that was decoded with a wrong character set is not repaired, as it is in Python.
 *
 * @param {string} phrase A phrase.
 * @returns {string} The text.
 */
export function clean(phrase) {
  let text = phrase;
  if (/[^\x00-\x7f]|&/.test(text)) {
    text = unescapeHtml(unescapeHtml(repair(text)));
  }
  return words(text).toLowerCase();
}

/** Wide, joined and curly characters as plain ones. */
function repair(text) {
  return (text.includes("<") ? text : unescapeHtml(text))
    .replace(/[\u0132-\u01f3\ufb00-\ufb06]/g, (c) => LIGATURES[c] ?? c)
    .replace(/[\u3000\uff01-\uffef]/g, (c) => c.normalize("NFKC"))
    .replace(/[\u02bc\u2018-\u201b]/g, "'")
    .replace(/[\u201c-\u201f]/g, '"')
    .replace(/[\u2028\u2029\x85]/g, "\n")
    .replace(CONTROLS, "")
    .normalize("NFC");
}

/** Resolve entities such as &amp; by the rules of HTML. */
function unescapeHtml(text) {
  if (!text.includes("&")) return text;
  const area = document.createElement("textarea");
  area.innerHTML = text.replaceAll("<", "&lt;");
  return area.value.replace(CONTROLS, ""); // of numbers that stand for no character
}

const words = (text) => text.split(SPACE).filter(Boolean).join(" ");
