// All checks in their order. Section "Findings".
import { Archive } from './container.js'
import { Documents } from './documents.js'
import { Broken, Findings } from './findings.js'
import { contentOf } from './frames.js'
import { hexOf, textOf } from './json.js'
import { BLOCK_BYTES, paddingOf, readHeader } from './tar.js'

const COARSE_BYTES = 4 << 20
const BAGIT = 'BagIt-Version: 1.0\nTag-File-Character-Encoding: UTF-8\n'

/** Checks an archive; returns the findings and, where it could be opened, what it holds. */
export async function verify (path) {
  const findings = new Findings()
  let archive = null
  if (!await findings.of(() => { archive = Archive.open(path) })) return { findings, archive, documents: null }
  try {
    if (archive.frames.some(frame => frame.size > COARSE_BYTES)) findings.add('W002', '<frames>', 'some are large')
    new TarWalk(archive, findings).run()
    checkBag(archive, findings)
    const documents = new Documents(archive, findings)
    await documents.check()
    return { findings, archive, documents }
  } finally {
    archive.close()
  }
}

/** Goes through the tar stream and ticks off the members. */
class TarWalk {
  constructor (archive, findings) {
    this.archive = archive
    this.findings = findings
    this.damaged = [] // [start, end) of what damaged frames held
    this.tar = this.decompressed()
    this.seen = new Map() // path: 'file' or 'link'
    this.prefix = `${archive.footer.base_directory}/`
  }

  // The whole stream; zeros stand for what damaged frames held.
  decompressed () {
    const { archive } = this
    return Buffer.concat(archive.frames.map((frame, n) => {
      try {
        return contentOf(archive.bytesOfFrame(frame), frame, `<frame ${n}>`)
      } catch (error) {
        if (!(error instanceof Broken)) throw error
        this.findings.list.push(error)
        this.damaged.push([frame.tarOffset, frame.tarOffset + frame.size])
        return Buffer.alloc(frame.size)
      }
    }))
  }

  isDamaged (start, end) {
    return this.damaged.some(([from, to]) => start < to && end > from)
  }

  run () {
    let at = 0
    while (at !== null) at = this.next(at)
    for (const path of this.archive.members.keys()) {
      if (!this.seen.has(path)) this.findings.add('E031', path, 'is not in the tar stream')
    }
  }

  /** Takes one member; returns where the next begins, null at the end. */
  next (at) {
    let header
    try {
      header = readHeader(this.tar, at)
    } catch (error) {
      if (!(error instanceof Broken)) throw error
      if (!this.isDamaged(at, at + BLOCK_BYTES)) this.findings.list.push(error)
      return this.resume(at + BLOCK_BYTES)
    }
    if (this.isDamaged(at, header?.dataAt ?? at + BLOCK_BYTES)) return this.resume(at + BLOCK_BYTES)
    if (header === null) return this.checkEnd(at)
    return this.take(header)
  }

  take ({ name, linkName, size, dataAt, isOdd }) {
    const isInside = name.startsWith(this.prefix)
    const path = isInside ? name.slice(this.prefix.length) : name
    const member = isInside ? this.archive.members.get(path) : undefined
    if (!isInside) this.findings.add('E022', name, 'is outside of the base directory')
    else if (!member) this.findings.add('E030', path, 'is in no manifest')
    else if (this.seen.has(path)) this.findings.add('E038', path, 'is there twice')
    if (isOdd) this.findings.add('W001', path, 'has metadata in its header')
    if (linkName) this.takeLink(path, member, linkName)
    else if (member) this.takeData(member, dataAt, size)
    return linkName ? dataAt : this.afterData(path, dataAt, size)
  }

  takeData (member, at, size) {
    if (member.offset !== at || member.size !== size) this.findings.add('E026', member.path, 'lies elsewhere')
    this.seen.set(member.path, 'file')
    if (hexOf(this.tar.subarray(at, at + size)) !== member.digest) {
      this.findings.add('E029', member.path, 'has another digest')
    }
  }

  takeLink (path, member, linkName) {
    const target = linkName.startsWith(this.prefix) ? linkName.slice(this.prefix.length) : null
    const original = this.archive.members.get(target)
    if (this.seen.get(target) !== 'file' || target === path) {
      this.findings.add('E037', path, 'points to no earlier file')
    } else if (member) {
      if (member.digest !== original.digest) this.findings.add('E037', path, 'points to another content')
      const isThere = member.offset === original.offset && member.size === original.size
      if (!isThere) this.findings.add('E026', path, 'is a link with another row')
    }
    if (member) this.seen.set(path, 'link')
  }

  afterData (path, at, size) {
    const end = at + size + paddingOf(size)
    if (end > this.tar.length) {
      this.findings.add('E039', path, 'the stream ends within it')
      return null
    }
    if (this.tar.subarray(at + size, end).some(byte => byte)) this.findings.add('E039', path, 'has no zero padding')
    return end
  }

  // Goes on with the next data that the index knows of.
  resume (after) {
    const rest = [...this.archive.members.values()]
      .filter(member => member.offset >= after && !this.seen.has(member.path))
      .sort((a, b) => a.offset - b.offset)
    if (!rest.length) return null
    const { path, offset, size } = rest[0]
    this.takeData(rest[0], offset, size)
    return this.afterData(path, offset, size)
  }

  checkEnd (at) {
    const end = this.tar.subarray(at)
    const isRight = end.length === 2 * BLOCK_BYTES && end.every(byte => byte === 0)
    if (!isRight) this.findings.add('E039', '<tar stream>', 'does not end with two zero blocks')
    return null
  }
}

function checkBag (archive, findings) {
  const content = path => {
    try {
      return archive.members.has(path) ? archive.read(path) : Buffer.alloc(0)
    } catch (error) {
      if (!(error instanceof Broken)) throw error
      return Buffer.alloc(0) // the walk has found it
    }
  }
  if (content('bagit.txt').toString('latin1') !== BAGIT) findings.add('E032', 'bagit.txt', 'is not as it must be')
  let text = ''
  try {
    text = textOf(content('bag-info.txt'), 'E009', 'bag-info.txt')
  } catch (error) {
    findings.list.push(error)
    return
  }
  const payload = [...archive.members.values()].filter(member => member.path.startsWith('data/'))
  const bytes = payload.reduce((total, member) => total + member.size, 0)
  const values = [...text.matchAll(/^Payload-Oxum:(.*)$/gim)].map(found => found[1].trim())
  if (values.length !== 1 || values[0] !== `${bytes}.${payload.length}`) {
    findings.add('E033', 'bag-info.txt', `Payload-Oxum is not ${bytes}.${payload.length}`)
  }
}
