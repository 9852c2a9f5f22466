// The requests that the service takes, from its own description (openapi.json); nothing is loaded from elsewhere.

const made = (name, text = "", kind = "") => {
  const element = document.createElement(name);
  element.textContent = text;
  if (kind) element.className = kind;
  return element;
};

// A schema as a short text, and where it refers to, the first example there.
const kindOf = (schema) => schema.type ?? (schema.anyOf ?? []).map(kindOf).filter((kind) => kind !== "null").join(" or ");

function inner(schema, whole) {
  if (schema?.$ref) return whole.components.schemas[schema.$ref.split("/").at(-1)];
  return schema ?? {};
}

function table(rows) {
  const element = document.createElement("table");
  for (const cells of rows) {
    const row = element.insertRow();
    for (const text of cells) row.insertCell().textContent = text;
  }
  return element;
}

function route(method, path, operation, whole) {
  const section = made("section", "", "route");
  section.append(made("h2", `${method.toUpperCase()} ${path}`), made("p", operation.description ?? operation.summary));
  const asked = (operation.parameters ?? []).map((one) => [one.name, kindOf(one.schema), one.description ?? one.schema.description ?? ""]);
  const content = Object.entries(operation.requestBody?.content ?? {})[0];
  const body = content && inner(content[1].schema, whole);
  for (const [name, schema] of Object.entries(body?.properties ?? {})) {
    asked.push([name, kindOf(inner(schema, whole)), schema.description ?? ""]);
  }
  section.append(table(asked));
  const example = body?.examples?.[0];
  const address = new URL(path.slice(1), document.baseURI).href;
  let command = method === "get" ? `curl -sS '${address}'` : `curl -sS -X ${method.toUpperCase()} '${address}'`;
  if (example) command += ` -H 'Content-Type: application/json' -d '${JSON.stringify(example).replaceAll("'", "'\\''")}'`;
  if (content?.[0] === "multipart/form-data") command += Object.keys(body.properties).slice(0, 1).map((name) => ` -F '${name}=@FILE'`).join("");
  section.append(made("pre", operation.security ? `${command} -H "Authorization: Bearer $TUWEN_KEY"` : command));
  const answer = inner(operation.responses?.[200]?.content?.["application/json"]?.schema, whole);
  if (answer?.examples) section.append(made("pre", JSON.stringify(answer.examples[0], null, 1)));
  const refusals = Object.entries(operation.responses).filter(([status]) => status >= 400);
  section.append(table(refusals.map(([status, one]) => [status, one.description])));
  return section;
}

const whole = await (await fetch("openapi.json")).json();
for (const [path, methods] of Object.entries(whole.paths)) {
  for (const [method, operation] of Object.entries(methods)) {
    document.getElementById("routes").append(route(method, path, operation, whole));
  }
}
