// CLIP's byte-pair tokenizer: the ids that efficientsam3/bpe.py gives, from the same tokenizer.json.

const WORDS = /'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+/gu;
const END_OF_WORD = "</w>";

/** Converts phrases to token ids. */
export class Tokenizer {
  /**
   * @param {object} file Content of tokenizer.json.
   * @param {{start: number, end: number, pad: number, context: number}} rules Of the manifest.
   */
  constructor(file, rules) {
    this.rules = rules;
    this.vocabulary = new Map(Object.entries(file.model.vocab));
    // In files of older versions of the package tokenizers a merge is a text with one space.
    this.ranks = new Map(file.model.merges.map(
      (pair, rank) => [Array.isArray(pair) ? pair.join(" ") : pair, rank],
    ));
    this.special = new Map(file.added_tokens.map(({ content, id }) => [content, id]));
    const escaped = [...this.special.keys()].map((s) => s.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
    this.splitter = escaped.length ? new RegExp(`(${escaped.join("|")})`) : /$^/;
    this.letters = byteLetters();
    this.words = new Map();
  }

  /**
   * Convert a text to ids, without the tokens of start and end.
   *
   * @param {string} text A phrase as `clean` gives it.
   * @returns {number[]} Ids of its tokens.
   */
  encode(text) {
    const ids = [];
    for (const part of text.split(this.splitter)) {
      if (this.special.has(part)) ids.push(this.special.get(part));
      else for (const [word] of part.matchAll(WORDS)) ids.push(...this.encodeWord(word));
    }
    return ids;
  }

  /**
   * Convert phrases for the text encoder. A phrase that is too long keeps its first tokens.
   *
   * @param {string[]} texts Phrases as `clean` gives them.
   * @returns {{ids: BigInt64Array, cut: boolean[]}} (B, context) ids: the start token, the phrase,
   *   the end token, then padding; and which phrases are too long.
   */
  read(texts) {
    const { start, end, pad, context } = this.rules;
    const ids = new BigInt64Array(texts.length * context).fill(BigInt(pad));
    const cut = texts.map((text, row) => {
      const all = this.encode(text);
      const kept = [start, ...all.slice(0, context - 2), end];
      kept.forEach((id, place) => { ids[row * context + place] = BigInt(id); });
      return all.length > context - 2;
    });
    return { ids, cut };
  }

  /** Ids of a word: neighbors are joined, those of the lowest rank first. */
  encodeWord(word) {
    const known = this.words.get(word);
    if (known) return known;
    const bytes = new TextEncoder().encode(word);
    let parts = Array.from(bytes, (byte) => this.letters[byte]);
    parts[parts.length - 1] += END_OF_WORD;
    while (parts.length > 1) {
      let best = Infinity;
      for (let i = 0; i + 1 < parts.length; i++) {
        best = Math.min(best, this.ranks.get(`${parts[i]} ${parts[i + 1]}`) ?? Infinity);
      }
      if (best === Infinity) break;
      const joined = [];
      for (let i = 0; i < parts.length; i++) {
        const joins = i + 1 < parts.length
          && this.ranks.get(`${parts[i]} ${parts[i + 1]}`) === best;
        joined.push(joins ? parts[i] + parts[i + 1] : parts[i]);
        if (joins) i++;
      }
      parts = joined;
    }
    const ids = parts.map((part) => this.vocabulary.get(part));
    this.words.set(word, ids);
    return ids;
  }
}

/** The letter that stands for each of the 256 bytes: visible ones for themselves. */
function byteLetters() {
  const letters = [];
  let others = 256;
  for (let byte = 0; byte < 256; byte++) {
    const visible = (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
    letters.push(String.fromCharCode(visible ? byte : others++));
  }
  return letters;
}
