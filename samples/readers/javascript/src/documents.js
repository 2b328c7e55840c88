// Documents and tables, and how they belong together: step 4 of section "Findings".
import { Broken } from './findings.js'
import { byCodePoints, contentDigest, contentsOf, digestOf, hexOf, isObject, metricsDigest, parseJson } from './json.js'
import { LISTED_KINDS, PLACED_KINDS, placeOf } from './layout.js'
import { escapeSegment, standsFor } from './paths.js'
import { checkSchema } from './schema.js'
import { isSorted, objectOf, rowsOf } from './tables.js'

const FREE_DOCUMENT_BYTES = 48 << 20
const MAX_DOCUMENT_BYTES = 256 << 20
const EXPANSION = 1000
const KNOWN_MINOR = 3n
const MOST_NAMED = 100_000n
const MAX_EVENT_BYTES = 64 << 10
const ARCHIVE = 'data/archive.json'
const HEADER = 'exim.json'
const TRACE_TABLES = ['traces', 'spans', 'assessments']

/** Checks all documents and tables of an open archive; what they hold is in its fields afterwards. */
export class Documents {
  constructor (archive, findings) {
    this.archive = archive
    this.findings = findings
    this.broken = findings.brokenPlaces
    this.foundBefore = findings.list.length
    this.isSince12 = archive.minor >= 2n
    this.isSince13 = archive.minor >= 3n
    this.contentLines = [] // [path, digest] of the objects
    this.traceDigests = new Map() // by folder of the experiment
    this.loggedRoot = null
    this.isWhole = true // no envelope is unreadable
    this.areRunsRead = true
    this.documents = new Map() // by path
    this.tables = new Map() // rows of each metrics file, by path
    this.traces = []
    this.named = new Set([ARCHIVE])
    this.ranges = new Map() // by metrics file
    this.runs = new Map() // by id
    this.counts = new Map([...PLACED_KINDS, ...LISTED_KINDS].map(kind => [kind, 0n]))
    this.metricRows = 0n
    this.artifactBytes = 0n
    this.listed = new Set()
    this.there = new Set()
    this.unreadFolders = []
    this.names = new Map([['data/', newNames()]]) // of experiments, models and prompts, by tree
    this.identities = new Set()
  }

  find (code, place, message) {
    this.findings.add(code, place, message)
  }

  count (kind, number = 1) {
    this.counts.set(kind, this.counts.get(kind) + BigInt(number))
  }

  async check () {
    await this.checkHeader()
    await this.checkLog()
    const paths = [...this.archive.members.keys()].filter(path => path.startsWith('data/')).sort(byCodePoints)
    for (const path of paths) {
      const place = placeOf(path)
      if (place) await this.checkMember(path, place)
    }
    this.checkListed()
    for (const path of [...this.ranges.keys()].sort(byCodePoints)) await this.checkMetrics(path)
    await this.checkSummary()
    for (const path of this.isWhole ? paths : []) {
      if (!this.named.has(path)) this.find('W020', path, 'no envelope names it')
    }
  }

  /** The document at a path, checked by its schema; null when it is not to be read. */
  async document (path, schema) {
    this.named.add(path)
    let document = null
    const isRead = !this.broken.has(path) && await this.findings.of(() => {
      const { size } = this.archive.members.get(path)
      if (size > MAX_DOCUMENT_BYTES) throw new Broken('E050', path, 'is too large')
      if (size > FREE_DOCUMENT_BYTES && size > EXPANSION * this.archive.storedBytes(path)) {
        throw new Broken('E065', path, 'is made of few bytes')
      }
      const value = parseJson(this.archive.read(path), path)
      checkSchema(value, schema, path)
      document = value
    })
    if (isRead) this.documents.set(path, document)
    else this.isWhole = false
    return document
  }

  async checkHeader () {
    if (!this.archive.members.has(HEADER)) return this.find('E057', HEADER, 'is missing')
    const header = await this.document(HEADER, 'exim')
    if (!header) return
    const { format, version } = this.archive.footer
    const isSame = header.format === format && header.format_version === version.join('.') &&
      (header.required_features ?? []).length === 0
    if (!isSame) this.find('E057', HEADER, 'does not say what the footer says')
  }

  /** Section "Log": events are numbered and name each other, the last one the content root. */
  async checkLog () {
    if (!this.isSince13) return // the folder had no meaning then
    const events = [...this.archive.members.keys()].filter(path => /^log\/[0-9]+\.json$/.test(path)).sort(byCodePoints)
    let last = null
    let loggedRoot = null
    const isRead = await this.findings.of(() => {
      events.forEach((path, n) => {
        const fail = message => { throw new Broken('E068', path, message) }
        if (path !== `log/${String(n + 1).padStart(5, '0')}.json`) fail(`is not event ${n + 1}`)
        if (this.archive.members.get(path).size > MAX_EVENT_BYTES) fail('is too large')
        if (this.broken.has(path)) throw new Broken('E029', path, 'has another digest')
        const bytes = this.archive.read(path)
        const event = parseJson(bytes, path)
        checkSchema(event, 'event', path)
        if (last !== null && event.info.earlier?.event !== last) fail('does not name the event before it')
        last = hexOf(bytes)
        loggedRoot = event.info.content_root
        this.documents.set(path, event)
      })
    })
    this.loggedRoot = isRead ? loggedRoot : null
  }

  async checkMember (path, place) {
    if (!this.names.has(place.tree)) this.names.set(place.tree, newNames())
    if (place.type === 'metrics') {
      this.named.add(path)
      if (!this.ranges.has(path)) this.ranges.set(path, [])
      return
    }
    if (place.kind) this.count(place.kind)
    if (['run', 'logged_model', 'version'].includes(place.type)) this.there.add(path)
    const document = await this.document(path, place.type)
    if (!document) {
      if (place.type === 'run') this.areRunsRead = false
      if (place.type === 'experiment' || place.type === 'model') this.unreadFolders.push(place.folder)
      return
    }
    const { info, mlflow } = document
    if (place.type === 'trace_part') return this.checkTraces(path, place, info, mlflow)
    const check = {
      experiment: this.checkExperiment,
      run: this.checkRun,
      logged_model: this.checkLoggedModel,
      model: this.checkModel,
      version: this.checkVersion,
      entity: this.checkEntity
    }[place.type]
    if (check.call(this, path, place, info, mlflow) === false) return
    this.contentLines.push([unnumbered(path, place, mlflow), info.content_digest])
    this.checkDigest(path, info, mlflow, { metrics: info.metrics?.digest, artifacts: info.artifacts })
    this.checkArtifacts(path, info.artifacts ?? [])
  }

  checkExperiment (path, place, info, mlflow) {
    const { experiment, runs = [], logged_models: models = [] } = mlflow
    this.names.get(place.tree).experiments.add(canonicalName(experiment))
    this.checkIdentity(path, place.segment, experiment.experiment_id)
    for (const id of runs) this.listed.add(`${place.folder}runs/${escapeSegment(id)}/run.json`)
    for (const id of models) this.listed.add(`${place.folder}logged_models/${escapeSegment(id)}/logged_model.json`)
    if (info.num_ok_runs !== BigInt(new Set(runs).size) || !addsUp(info)) {
      this.find('E058', path, 'its run counters do not add up')
    }
  }

  checkRun (path, place, info, mlflow) {
    const { run_id: id, experiment_id: experiment } = mlflow.run.info
    this.checkIdentity(path, place.segment, id)
    this.checkIdentity(path, place.experiment, experiment)
    this.checkOnce(path, ['run', id])
    const { metrics } = info
    if (!metrics) return
    if (metrics.rows !== metrics.parts.reduce((total, part) => total + part.rows, 0n)) {
      this.find('E053', path, 'its ranges do not add up to its rows')
    }
    this.count('metric_history', metrics.keys)
    this.metricRows += metrics.rows
    this.runs.set(id, { path, metrics, rows: [] })
    for (const part of metrics.parts) {
      this.named.add(part.member)
      if (!this.ranges.has(part.member)) this.ranges.set(part.member, [])
      this.ranges.get(part.member).push({ first: Number(part.first_row), rows: Number(part.rows), id })
    }
  }

  checkLoggedModel (path, place, info, mlflow) {
    const { model_id: id, experiment_id: experiment } = mlflow.logged_model.info
    this.checkIdentity(path, place.segment, id)
    this.checkIdentity(path, place.experiment, experiment)
  }

  checkModel (path, place, info, mlflow) {
    const { name } = mlflow.registered_model
    this.checkOnce(path, [place.kind, place.tree, name])
    this.names.get(place.tree)[place.kind].set(place.segment, name)
    this.checkIdentity(path, place.segment, name, true)
    for (const number of mlflow.versions ?? []) this.listed.add(`${place.folder}versions/${number}/version.json`)
  }

  checkVersion (path, place, info, mlflow) {
    const { name, version } = mlflow.model_version
    if (version !== place.segment) this.find('E052', path, `is version ${version}`)
    const owner = this.names.get(place.tree)[place.modelKind].get(place.model)
    if (owner !== undefined && owner !== name) this.find('E052', path, `is a version of ${name}`)
  }

  checkEntity (path, place, info, mlflow) {
    const entity = mlflow[place.kind]
    const id = isObject(entity) ? entity[place.idField] : undefined
    if (typeof id !== 'string') {
      this.find('E051', path, `has no ${place.kind} with a ${place.idField}`)
      this.isWhole = false
      return false
    }
    this.checkIdentity(path, place.segment, id, true)
    this.checkOnce(path, [place.kind, place.tree, place.experiment ?? '', id])
    if (place.kind === 'evaluation_dataset' && Array.isArray(entity.records)) {
      this.count('dataset_record', entity.records.length)
    }
  }

  checkIdentity (path, segment, id, mayBeNumbered = false) {
    if (!standsFor(segment, id, mayBeNumbered)) this.find('E052', path, `is of ${id}`)
  }

  checkOnce (path, identity) {
    const key = JSON.stringify(identity)
    if (this.identities.has(key)) this.find('E052', path, 'is the second envelope of its object')
    this.identities.add(key)
  }

  checkDigest (path, info, mlflow, parts) {
    const found = contentDigest(mlflow, parts)
    if (found !== info.content_digest) this.find('E055', path, `hashes to ${found}`)
  }

  checkArtifacts (path, entries) {
    for (const entry of entries) {
      this.count('artifact')
      this.artifactBytes += entry.size_bytes
      this.named.add(entry.member)
      const member = this.archive.members.get(entry.member)
      const isRight = member && BigInt(member.size) === entry.size_bytes && member.digest === entry.sha256
      if (!isRight) this.find('E054', path, `its artifact ${entry.member} is not there or another`)
    }
  }

  async checkTraces (path, place, info, mlflow) {
    this.checkIdentity(path, place.experiment, mlflow.experiment_id)
    const attachments = info.attachments ?? []
    this.checkArtifacts(path, attachments)
    for (const { member } of Object.values(info.tables)) this.named.add(member)
    let traces = []
    const isRead = await this.findings.of(async () => {
      const rows = Object.create(null)
      for (const table of TRACE_TABLES) rows[table] = await this.rowsOfTable(path, table, info.tables[table])
      traces = tracesOf(rows, attachments, path)
    })
    if (!isRead) {
      this.isWhole = false
      return
    }
    for (const trace of traces) this.checkTrace(path, trace)
    const { folder } = place
    this.traceDigests.set(folder, [...this.traceDigests.get(folder) ?? [], ...traces.map(trace => trace.digest)])
    this.traces.push(...traces)
    if (mlflow.traces !== BigInt(traces.length)) this.find('E058', path, `has ${traces.length} traces`)
    this.checkDigest(path, info, mlflow, { traces: traces.map(trace => [trace.id, trace.digest]) })
  }

  async rowsOfTable (path, table, entry) {
    if (!entry) {
      if (table === 'traces') throw new Broken('E062', path, 'names no table of traces')
      return []
    }
    const { member } = entry
    if (!this.archive.members.has(member)) throw new Broken('E062', member, 'is not in the archive')
    const rows = await rowsOf(this.archive.read(member), table, this.archive.storedBytes(member), member)
    if (BigInt(rows.length) !== entry.rows) throw new Broken('E063', member, `has ${rows.length} rows`)
    return rows
  }

  checkTrace (path, trace) {
    this.count('trace')
    this.count('span', trace.spans?.length ?? 0)
    this.count('assessment', trace.assessments.length)
    const { info, assessments, spans } = trace
    const body = { info, assessments, spans }
    if (trace.attachments.length) body.attachments = contentsOf(trace.attachments)
    const found = digestOf(body)
    if (found !== trace.digest) this.find('E064', path, `trace ${trace.id} hashes to ${found}`)
    const problem = problemOf(trace)
    if (problem) this.find('E063', path, `trace ${trace.id}: ${problem}`)
  }

  checkListed () {
    for (const path of this.listed) if (!this.there.has(path)) this.find('E056', path, 'is listed and not there')
    for (const path of this.there) {
      const isKnown = this.listed.has(path) || this.unreadFolders.some(folder => path.startsWith(folder))
      if (!isKnown) this.find('E056', path, 'is not listed')
    }
  }

  async checkMetrics (path) {
    if (!this.archive.members.has(path)) return this.find('E053', path, 'is named and not in the archive')
    if (this.broken.has(path)) return
    await this.findings.of(async () => {
      const rows = await rowsOf(this.archive.read(path), 'metrics', this.archive.storedBytes(path), path)
      this.tables.set(path, rows)
      if (!isSorted(rows)) this.find('E060', path, 'is not sorted')
      this.checkRanges(path, rows)
    })
  }

  checkRanges (path, rows) {
    const fail = message => this.find('E053', path, message)
    let end = 0
    for (const range of this.ranges.get(path).sort((a, b) => a.first - b.first || a.rows - b.rows)) {
      if (range.first < end || (range.first > end && this.areRunsRead)) fail(`rows at ${end} belong to no run or two`)
      end = range.first + range.rows
      if (end > rows.length) fail(`has no row ${end}`)
      const mine = rows.slice(range.first, end)
      if (mine.some(row => row.run_id !== range.id)) fail(`rows of ${range.id} belong to another`)
      else this.takeRows(this.runs.get(range.id), mine)
    }
    if (end < rows.length && this.areRunsRead) fail(`rows from ${end} on belong to no run`)
  }

  takeRows (run, rows) {
    run.rows.push(...rows)
    if (BigInt(run.rows.length) !== run.metrics.rows) return
    const found = metricsDigest(run.rows)
    if (found !== run.metrics.digest) this.find('E061', run.path, `its rows hash to ${found}`)
    const keys = new Set(run.rows.map(row => row.key)).size
    if (this.isSince12 && BigInt(keys) !== run.metrics.keys) this.find('E058', run.path, `has ${keys} keys`)
  }

  async checkSummary () {
    if (!this.archive.members.has(ARCHIVE)) return this.find('E058', ARCHIVE, 'is missing')
    const document = await this.document(ARCHIVE, 'archive')
    if (!document) return
    const { info, mlflow } = document
    const fail = message => this.find('E058', ARCHIVE, message)
    if (this.isWhole) {
      if (!this.isListing(mlflow)) this.find('E056', ARCHIVE, 'does not list what is there')
      const isRight = info.metric_rows === this.metricRows && info.artifact_bytes === this.artifactBytes
      if (!isRight) fail('its totals are others')
    }
    if (info.num_ok_runs !== this.counts.get('run') || !addsUp(info)) fail('its run counters do not add up')
    for (const [kind, counts] of Object.entries(info.counts)) {
      if (counts.found !== counts.written + counts.skipped + counts.failed) fail(`${kind} does not add up`)
    }
    for (const [kind, number] of this.counts) {
      const isKnown = this.isWhole || PLACED_KINDS.includes(kind)
      if (isKnown && (info.counts[kind]?.written ?? 0n) !== number) fail(`there are ${number} of ${kind}`)
    }
    this.checkFailures(info)
    if (this.loggedRoot !== null && this.loggedRoot !== info.content_root) {
      this.find('E068', ARCHIVE, 'the log ends with another content root')
    }
    this.checkContentRoot(info)
  }

  /** Section "Content root"; told last, as it repeats what is wrong with any object. */
  checkContentRoot (info) {
    const isSound = this.isWhole && !this.findings.list.slice(this.foundBefore).some(({ code }) => code[0] === 'E')
    const isKnown = this.isSince13 && this.archive.minor <= KNOWN_MINOR // later ones may have objects elsewhere
    if (isKnown && isSound && info.content_root !== this.contentRoot()) {
      this.find('E067', ARCHIVE, `the content root is ${this.contentRoot()}`)
    }
  }

  contentRoot () {
    const hex = digest => digest.slice('sha256:'.length)
    const lines = this.contentLines.map(([path, digest]) => [path, hex(digest)])
    for (const [folder, digests] of this.traceDigests) {
      if (digests.length) lines.push([`${folder}traces`, hexOf(digests.map(digest => `${hex(digest)}\n`).sort().join(''))])
    }
    lines.sort((a, b) => byCodePoints(a[0], b[0]))
    return hexOf(lines.map(([path, digest]) => `${digest}  ${path}\n`).join(''))
  }

  isListing (mlflow) {
    const listings = new Map([['data/', mlflow]])
    for (const workspace of mlflow.workspaces ?? []) {
      listings.set(`data/workspaces/${escapeSegment(workspace.name)}/`, workspace)
    }
    return listings.size === this.names.size && [...listings].every(([tree, listing]) => {
      const names = this.names.get(tree)
      return names !== undefined &&
        isSameSet(new Set((listing.experiments ?? []).map(canonicalName)), names.experiments) &&
        isSameSet(new Set(listing.models ?? []), new Set(names.registered_model.values())) &&
        isSameSet(new Set(listing.prompts ?? []), new Set(names.prompt.values()))
    })
  }

  checkFailures (info) {
    const named = Object.create(null)
    for (const { kind, count = 1n } of info.failures ?? []) named[kind] = (named[kind] ?? 0n) + count
    const kinds = new Set([...Object.keys(named), ...Object.keys(info.counts)])
    const unlike = [...kinds].filter(kind => (named[kind] ?? 0n) !== (info.counts[kind]?.failed ?? 0n))
    if (unlike.length && this.isSince12) this.find('E066', ARCHIVE, `does not name all failed ${unlike}`)
    else if ([...kinds].some(kind => named[kind] || info.counts[kind]?.failed)) this.find('W021', ARCHIVE, 'objects failed')
  }
}

/** A path without the number that keeps names apart. */
function unnumbered (path, place, mlflow) {
  if (place.type === 'version' || place.type === 'model') {
    const { name } = mlflow.model_version ?? mlflow.registered_model
    const below = path.slice(place.folder.length)
    return `${place.folder.split('/').slice(0, -2).join('/')}/${escapeSegment(name)}/${below}`
  }
  if (place.type !== 'entity' || place.kind === 'workspace') return path
  return `${path.slice(0, path.lastIndexOf('/'))}/${escapeSegment(mlflow[place.kind][place.idField])}.json`
}

const newNames = () => ({ experiments: new Set(), registered_model: new Map(), prompt: new Map() })
const canonicalName = experiment => JSON.stringify([experiment.experiment_id, experiment.name])
const isSameSet = (a, b) => a.size === b.size && [...a].every(one => b.has(one))
const isListed = (count, listed) => count === BigInt(listed.length) || (count > MOST_NAMED && BigInt(listed.length) === MOST_NAMED)
const addsUp = info => isListed(info.num_failed_runs, info.failed_runs ?? []) &&
  info.num_total_runs === info.num_ok_runs + info.num_failed_runs

/** Puts the rows of a part's tables together; throws E063 when they do not belong together. */
function tracesOf (rows, attachments, path) {
  const fail = message => { throw new Broken('E063', path, message) }
  const take = table => {
    let at = 0
    return {
      of: (id, count) => {
        const start = at
        while (at < rows[table].length && rows[table][at].trace_id === id) at++
        if (BigInt(at - start) !== count) fail(`trace ${id} has ${at - start} ${table}, not ${count}`)
        return rows[table].slice(start, at).map(row => objectOf(row, table, path))
      },
      end: () => at < rows[table].length && fail(`${table} belong to no trace`)
    }
  }
  const [spans, assessments] = [take('spans'), take('assessments')]
  const attached = Map.groupBy?.(attachments, entry => entry.trace_id) ?? grouped(attachments)
  let last = null
  const traces = rows.traces.map(row => {
    const { trace_id: id } = row
    if (last !== null && byCodePoints(last, id) >= 0) fail(`trace ${id} comes after ${last}`)
    last = id
    const mine = assessments.of(id, row.assessments)
    const trace = {
      id,
      digest: row.content_digest,
      info: objectOf(row, 'traces', path),
      assessments: mine,
      spans: row.spans === null || row.spans === undefined ? spans.of(id, 0n) && null : spans.of(id, row.spans),
      attachments: attached.get(id) ?? []
    }
    for (const span of trace.spans ?? []) if (id.startsWith('tr-')) span.otel_trace_id ??= id.slice(3)
    attached.delete(id)
    return trace
  })
  spans.end()
  assessments.end()
  if (attached.size) fail('attachments belong to no trace')
  return traces
}

function grouped (attachments) {
  const groups = new Map()
  for (const entry of attachments) groups.set(entry.trace_id, [...groups.get(entry.trace_id) ?? [], entry])
  return groups
}

// What a trace lacks that all have, or has of another type; empty when it is right.
function problemOf ({ info, spans, assessments }) {
  const isText = (object, ...names) => names.every(name => typeof object[name] === 'string')
  const isInteger = (object, name) => typeof object[name] === 'bigint'
  const isObjectOrNone = (object, ...names) => names.every(name => object[name] === undefined || isObject(object[name]))
  const isTexts = list => list === undefined || (Array.isArray(list) && list.every(one => typeof one === 'string'))
  const isList = (list, check) => list === undefined || (Array.isArray(list) && list.every(one => isObject(one) && check(one)))
  if (!isObjectOrNone(info, 'tags', 'trace_metadata')) return 'tags or metadata are no objects'
  if (!['linked_runs', 'linked_prompts', 'unlinked_prompts'].every(name => isTexts(info[name]))) return 'links are no texts'
  if (!assessments.every(one => isText(one, 'assessment_name'))) return 'an assessment has no name'
  for (const span of spans ?? []) {
    const isRight = isText(span, 'span_id', 'otel_trace_id', 'name', 'status_code') && isInteger(span, 'start_time_ns') &&
      isObjectOrNone(span, 'attributes') &&
      isList(span.events, one => isText(one, 'name') && isInteger(one, 'time_ns') && isObject(one.attributes)) &&
      isList(span.links, one => isText(one, 'trace_id', 'span_id') && isObject(one.attributes))
    if (!isRight) return 'a span lacks a field'
  }
  return ''
}
