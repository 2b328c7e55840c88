// Which member is the envelope of what. Sections "Layout", "Entities".

const ENTITIES = {
  scorers: { kind: 'scorer', id: 'scorer_name', isOfExperiment: true },
  label_schemas: { kind: 'label_schema', id: 'schema_id', isOfExperiment: true },
  issues: { kind: 'issue', id: 'issue_id', isOfExperiment: true },
  review_queues: { kind: 'review_queue', id: 'queue_id', isOfExperiment: true },
  datasets: { kind: 'evaluation_dataset', id: 'dataset_id' },
  'gateway/model_definitions': { kind: 'model_definition', id: 'model_definition_id' },
  'gateway/endpoints': { kind: 'endpoint', id: 'endpoint_id' },
  'gateway/guardrails': { kind: 'guardrail', id: 'guardrail_id' },
  'gateway/budget_policies': { kind: 'budget_policy', id: 'budget_policy_id' },
  mcp_servers: { kind: 'mcp_server', id: 'name' },
  skills: { kind: 'skill', id: 'skill_id' },
  webhooks: { kind: 'webhook', id: 'webhook_id' }
}
const REGISTRIES = {
  models: { kind: 'registered_model', version: 'model_version' },
  prompts: { kind: 'prompt', version: 'prompt_version' }
}

/** Kinds that are counted by the place of their envelopes. */
export const PLACED_KINDS = [
  'experiment', 'run', 'logged_model', 'workspace',
  ...Object.values(REGISTRIES).flatMap(of => [of.kind, of.version]),
  ...Object.values(ENTITIES).map(of => of.kind)
]
/** Kinds that are counted by what envelopes and tables say. */
export const LISTED_KINDS = ['metric_history', 'artifact', 'trace', 'span', 'assessment', 'dataset_record']

/**
 * What stands at a member path, or null for what is no envelope and no metrics file: `type` (name of
 * its schema, or "metrics"), `kind`, `tree` of its workspace, and the segments that encode ids.
 */
export function placeOf (path) {
  const inWorkspace = /^(data\/workspaces\/([^/]+)\/)(.+)$/.exec(path)
  const tree = inWorkspace ? inWorkspace[1] : 'data/'
  if (!path.startsWith(tree)) return null
  const rest = path.slice(tree.length)
  if (inWorkspace && rest === 'workspace.json') {
    return { type: 'entity', kind: 'workspace', idField: 'name', tree, segment: inWorkspace[2] }
  }
  return ofExperiment(rest, tree) ?? ofRegistry(rest, tree) ?? ofWorkspace(rest, tree)
}

function ofExperiment (rest, tree) {
  const found = /^(experiments\/([^/]+)\/)(.+)$/.exec(rest)
  if (!found) return null
  const [, folder, experiment, below] = found
  const place = { tree, experiment, folder: tree + folder }
  if (below === 'experiment.json') return { ...place, type: 'experiment', kind: 'experiment', segment: experiment }
  if (/^metrics\/[^/]+$/.test(below)) return { ...place, type: 'metrics' }
  const run = /^runs\/([^/]+)\/run\.json$/.exec(below)
  if (run) return { ...place, type: 'run', kind: 'run', segment: run[1] }
  const model = /^logged_models\/([^/]+)\/logged_model\.json$/.exec(below)
  if (model) return { ...place, type: 'logged_model', kind: 'logged_model', segment: model[1] }
  if (/^traces\/part-[0-9]{5,}\.json$/.test(below)) return { ...place, type: 'trace_part' }
  const entity = /^([^/]+)\/([^/]+)\.json$/.exec(below)
  const of = entity && own(ENTITIES, entity[1])
  return of?.isOfExperiment ? { ...place, type: 'entity', kind: of.kind, idField: of.id, segment: entity[2] } : null
}

function ofRegistry (rest, tree) {
  const found = /^((models|prompts)\/([^/]+)\/)(?:model|versions\/([^/]+)\/version)\.json$/.exec(rest)
  if (!found) return null
  const [, folder, registry, model, version] = found
  const place = { tree, folder: tree + folder, model }
  const of = REGISTRIES[registry]
  if (version === undefined) return { ...place, type: 'model', kind: of.kind, segment: model }
  return { ...place, type: 'version', kind: of.version, modelKind: of.kind, segment: version }
}

function ofWorkspace (rest, tree) {
  const entity = /^(.+)\/([^/]+)\.json$/.exec(rest)
  const of = entity && own(ENTITIES, entity[1])
  if (!of || of.isOfExperiment) return null
  return { type: 'entity', kind: of.kind, idField: of.id, tree, segment: entity[2] }
}

const own = (object, key) => Object.hasOwn(object, key) ? object[key] : undefined
