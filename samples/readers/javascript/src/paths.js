// Member paths and names. Sections "Member paths", "Unicode", "The escape of names".
import { readFileSync } from 'node:fs'
import { Broken } from './findings.js'
import { sha256 } from './json.js'

const SPEC = new URL('../../../../spec/v1/', import.meta.url)
const SPACES = '[ \\u00a0\\u1680\\u2000-\\u200a\\u202f\\u205f\\u3000]'
const EDGE = new RegExp(`^${SPACES}|${SPACES}$|\\.$`, 'u')
const FORBIDDEN = /["%*:<>?\\|\u0000-\u001f\u007f-\u009f\u2028\u2029]/u
const DEVICE = /^(?:con|prn|aux|nul|conin\$|conout\$|(?:com|lpt)[0-9\u00b9\u00b2\u00b3]) *(?:\.|$)/i
const MOST_BYTES = { segment: 240, path: 1024, escapedPath: 640, leading: 399, cut: 175 }

export const specFile = path => readFileSync(new URL(path, SPEC), 'utf8')
export const bytesOf = text => Buffer.byteLength(text)

// A text is cut where Unicode 13.0 leaves a code point unassigned; each piece is changed by itself.
const gaps = specFile('unassigned.txt').trim().split('\n')
  .map(gap => gap.split('-').map(hex => `\\u{${hex}}`).join('-'))
const UNASSIGNED = new RegExp(`([${gaps.join('')}])`, 'u')
const pieceByPiece = (text, change) =>
  text.split(UNASSIGNED).map((piece, n) => n % 2 ? piece : change(piece)).join('')
const normalized = text => pieceByPiece(text, piece => piece.normalize('NFC'))

const FOLDED = new Map(specFile('folding.txt').trim().split('\n').map(line => {
  const [from, ...to] = line.split(' ').map(hex => String.fromCodePoint(parseInt(hex, 16)))
  return [from, to.join('')]
}))
const foldPiece = piece => [...piece].map(char => FOLDED.get(char) ?? char).join('')

/** What a file system without case or normalization takes a path for. */
export const folded = path => normalized(pieceByPiece(normalized(path), foldPiece))

/** Throws the first rule that a path breaks, E001 to E006. */
export function checkPath (path) {
  const fail = (code, message) => { throw new Broken(code, path, message) }
  const segments = path.split('/')
  for (const segment of segments) {
    if (segment === '' || segment === '.' || segment === '..') fail('E001', 'has an empty or dotted segment')
    if (FORBIDDEN.test(segment)) fail('E002', 'has a character that no path has')
    if (EDGE.test(segment)) fail('E003', 'has a segment with a space or dot at its edge')
    if (DEVICE.test(segment)) fail('E004', 'has a device name')
  }
  if (normalized(path) !== path) fail('E005', 'is not in normalization form C')
  if (bytesOf(path) > MOST_BYTES.path) fail('E006', 'is too long')
  if (segments.some(segment => bytesOf(segment) > MOST_BYTES.segment)) fail('E006', 'has a long segment')
}

/** Throws E007 or E008 when two of these paths meet on some file system. */
export function checkTogether (paths) {
  const files = new Map()
  for (const path of paths) {
    const key = folded(path)
    if (files.has(key)) throw new Broken('E007', path, `meets ${files.get(key)}`)
    files.set(key, path)
  }
  for (const [key, path] of files) {
    for (let end = key.indexOf('/'); end >= 0; end = key.indexOf('/', end + 1)) {
      const file = files.get(key.slice(0, end))
      if (file !== undefined) throw new Broken('E008', path, `lies in ${file}, which is a file`)
    }
  }
}

// UTF-8 in which a lone surrogate is as if it were a character.
function rawBytes (text) {
  return Buffer.concat([...text].map(char => {
    const code = char.codePointAt(0)
    if (code < 0xd800 || code > 0xdfff) return Buffer.from(char)
    return Buffer.from([0xe0 | code >> 12, 0x80 | code >> 6 & 63, 0x80 | code & 63])
  }))
}

const escaped = text =>
  [...rawBytes(text)].map(byte => `!${byte.toString(16).toUpperCase().padStart(2, '0')}`).join('')
const mustEscape = char =>
  char === '/' || char === '!' || FORBIDDEN.test(char) || !char.isWellFormed()

// The first bytes of an escaped name, without a part of a character or of an escape at the end.
function cut (segment) {
  const start = Buffer.from(segment).subarray(0, MOST_BYTES.cut)
  return new TextDecoder().decode(start, { stream: true }).replace(/![0-9A-F]?$/, '')
}
const shortened = (segment, whole) => `${cut(segment)}~${sha256(rawBytes(whole)).toString('hex')}`

/** The segment that any name becomes; the numbers are those of the text. */
export function escapeSegment (name) {
  if (name === '') return '!' // 1
  let chars = [...name].map(char => mustEscape(char) ? escaped(char) : char) // 2
  chars = [...chars.join('')]
  if (new RegExp(`^${SPACES}$|^\\.$`, 'u').test(chars.at(-1))) chars.push(escaped(chars.pop())) // 3
  chars = [...chars.join('')]
  if (new RegExp(`^${SPACES}`, 'u').test(chars[0]) || DEVICE.test(chars.join(''))) { // 4
    chars[0] = escaped(chars[0])
  }
  let segment = chars.join('')
  if (normalized(segment) !== segment) { // 5
    segment = [...segment].map(char => char < '\u0080' ? char : escaped(char)).join('')
  }
  segment = segment.replace(/~(?=[0-9a-f]{64}$)/, escaped('~')) // 6
  return bytesOf(segment) > MOST_BYTES.segment ? shortened(segment, name) : segment // 7
}

/** The member path of an artifact's path, before numbers. */
export function escapePath (path) {
  const segments = path.split('/').map(escapeSegment)
  const whole = segments.join('/')
  if (bytesOf(whole) <= MOST_BYTES.escapedPath) return whole
  const kept = []
  let room = MOST_BYTES.leading
  for (const segment of segments.slice(0, -1)) {
    room -= bytesOf(segment) + 1
    if (room < 0) break
    kept.push(segment)
  }
  return [...kept, shortened(segments.at(-1), path)].join('/')
}

/** The name that a segment was made of, or undefined when none can be told. */
export function decodeSegment (segment) {
  if (segment === '!') return ''
  let isText = true
  const name = segment.replace(/(?:![0-9A-F]{2})+/g, run => {
    const bytes = Buffer.from(run.replaceAll('!', ''), 'hex')
    // Three bytes from ED A0 on are a surrogate, which strict UTF-8 does not have.
    let made = ''
    for (let at = 0; at < bytes.length;) {
      const size = bytes[at] < 0x80 ? 1 : bytes[at] < 0xe0 ? 2 : bytes[at] < 0xf0 ? 3 : 4
      const char = bytes.subarray(at, at += size)
      if (char[0] === 0xed && char[1] >= 0xa0) {
        made += String.fromCharCode(0xd000 | (char[1] & 63) << 6 | char[2] & 63)
      } else made += char.toString()
    }
    isText &&= Buffer.compare(rawBytes(made), bytes) === 0
    return made
  })
  return isText && escapeSegment(name) === segment ? name : undefined
}

/** Whether a segment stands for a name; `mayBeNumbered` where `~2` may follow. */
export function standsFor (segment, name, mayBeNumbered = false) {
  const wanted = escapeSegment(name)
  if (segment === wanted) return true
  return mayBeNumbered && segment.startsWith(wanted) && /^~[1-9][0-9]*$/.test(segment.slice(wanted.length))
}
