-- Point an alias at a registered version.
local task = load_task()
local refused = stale(task)
if refused then return refused end
if not task then return fail('task_not_found') end
local known = load_version(arg.digest)
if not known then return fail('version_not_found') end
if names(task, arg.alias, arg.digest) then
  return cjson.encode({revision = task.revision, version = known.version, digest = arg.digest,
                       previous = arg.digest})
end
local other = other_outputs(arg.digest, task.aliases[arg.alias])
if other then return other end
local note = outputs_note(arg.digest, task.aliases[arg.alias])
local revision = new_revision()
remember(state_of(task))
local previous = point(task, arg.alias, arg.digest, known.version)
save_task(task, revision)
record(revision, 'set_alias', {
  tenant = arg.tenant, task = arg.task, alias = arg.alias, previous = previous,
  current = arg.digest, version = known.version, note = note})
return done({revision = revision, version = known.version, digest = arg.digest,
             previous = previous})
