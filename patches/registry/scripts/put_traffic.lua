-- Split a task's requests. The traffic is kept as the text that Python wrote, because Lua cannot
-- tell an empty list from an empty object; next to it are the numbers of the versions that take
-- part.
local task = load_task()
local refused = stale(task)
if refused then return refused end
if not task then return fail('task_not_found') end
if not task.aliases[PROD] then return fail('no_prod_version') end
local versions = {}
for _, digest in ipairs(arg.digests) do
  local known = load_version(digest)
  if not known then return cjson.encode({error = 'version_not_found', digest = digest}) end
  versions[digest] = known.version
end
local previous = text_of(task.traffic)
if previous == arg.traffic then
  return cjson.encode({revision = task.revision, traffic = previous, previous_traffic = previous})
end
local note
for _, digest in ipairs(arg.digests) do
  local other = other_outputs(digest, task.aliases[PROD])
  if other then return other end
  note = note or outputs_note(digest, task.aliases[PROD])
end
local revision = new_revision()
remember(state_of(task))
task.traffic = {text = arg.traffic, versions = versions, revision = revision}
save_task(task, revision)
record(revision, 'put_traffic', {
  tenant = arg.tenant, task = arg.task, traffic = arg.traffic, previous_traffic = previous,
  note = note})
return done({revision = revision, traffic = arg.traffic, previous_traffic = previous})
