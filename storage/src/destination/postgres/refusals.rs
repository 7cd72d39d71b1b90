//! Rows that an existing table's constraints refuse, found by one statement for many rows: nulls, checks, foreign keys that are
//! not there, unique keys that are. The way of [`super::publish`] through halves finds every refused row by itself, whatever refuses
//! it, and takes several statements for each; this is for files with very many of them, such as one that was loaded before.
//!
//! A row is taken out only where the table would refuse it whatever becomes of the other rows. What the catalogue does not say for
//! certain (triggers that change rows, expressions, other operators, values that are cast on their way) is left to the halves.

use sqlx::AssertSqlSafe;

use longshore_domain::LoadPlan;

use super::describe;
use super::session::{MESSAGE_KEPT, Session};
use crate::destination::{DestinationError, sql};

/// A row that is refused.
pub(super) struct Refused {
    /// Its number.
    pub(super) row: u64,
    /// The column at fault, where it is one.
    pub(super) column: Option<String>,
    /// What the table would have said.
    pub(super) detail: String,
}

/// What refuses rows of a staging table.
pub(super) struct Refusals {
    staging: String,
    row: String,
    clauses: Vec<Clause>,
}

/// One constraint.
struct Clause {
    /// When it refuses the row `s`.
    condition: String,
    /// The columns of its key, quoted: their values stand between the two parts of the text.
    key: Vec<String>,
    before: String,
    behind: String,
    column: Option<String>,
}

/// What the catalogue says of a table.
struct Table {
    oid: i64,
    name: String,
    /// Whether rows go in as they are staged: of the same types, past no trigger or rule that changes them.
    plain: bool,
    /// Whether only constraints of the sorts below refuse rows, and nothing is computed of them.
    declared: bool,
}

/// A constraint other than a key.
struct Constraint {
    name: String,
    /// `n`: not null, `c`: a check, `f`: a foreign key.
    kind: String,
    columns: Vec<String>,
    /// Of a check; of a column that may not be null, a default that is none.
    expression: Option<String>,
    /// What a foreign key refers to: quoted, and its name.
    other: Option<String>,
    other_name: Option<String>,
    other_columns: Vec<String>,
    /// Whether it refers to its own table.
    itself: bool,
    /// Whether a key with a null in it refers to nothing, and every row that it may refer to can be seen.
    simple: bool,
}

/// A unique index.
struct Unique {
    name: String,
    columns: Vec<String>,
    /// Whether it is of all rows, and of columns as they stand, compared by `=`.
    plain: bool,
}

impl Refusals {
    /// Looks at the table's constraints, and makes what the search needs; `None`: nothing can be found this way.
    ///
    /// # Errors
    /// The database's, behind which the transaction has to go back to a savepoint.
    pub(super) async fn of(
        session: &mut Session,
        plan: &LoadPlan,
        schema: &str,
        name: &str,
    ) -> Result<Option<Self>, sqlx::Error> {
        let quoted = |name: &str| sql::identifier(name).map_err(no_name);
        let target = describe::quoted(&plan.table).map_err(no_name)?;
        let staging = sql::qualified(schema, name).map_err(no_name)?;
        let Some(table) = table(session, &target, &staging).await?.filter(|table| table.plain) else { return Ok(None) };
        let loaded =
            |columns: &[String]| columns.iter().all(|column| plan.fields.iter().any(|field| field.name == *column));
        let row = quoted(&sql::row_column(plan))?;
        let mut clauses = Vec::new();
        // Whether what stays behind these clauses can only be refused by a key.
        let mut certain = table.declared;
        for constraint in constraints(session, table.oid).await? {
            let known = loaded(&constraint.columns) && constraint.simple && !constraint.itself;
            let key: Vec<String> = constraint.columns.iter().map(|column| quoted(column)).collect::<Result<_, _>>()?;
            match (known, constraint.kind.as_str()) {
                (true, "n") => clauses.push(Clause::null(&table.name, &constraint.columns, &key)),
                // What is not loaded has its default.
                (false, "n") if constraint.expression.is_some() => {}
                (true, "c") => clauses.extend(Clause::check(&table.name, &constraint)),
                (true, "f") => {
                    let columns = constraint.other_columns.iter().map(|column| quoted(column));
                    clauses.push(Clause::foreign(
                        &table.name,
                        &constraint,
                        key,
                        &columns.collect::<Result<Vec<_>, _>>()?,
                    ));
                }
                _ => certain = false,
            }
        }
        let uniques = uniques(session, table.oid).await?;
        for unique in uniques.iter().filter(|unique| unique.plain && loaded(&unique.columns)) {
            let key: Vec<String> = unique.columns.iter().map(|column| quoted(column)).collect::<Result<_, _>>()?;
            let same = equal("t", &key, &key);
            let there = format!("EXISTS (SELECT FROM ONLY {target} AS t WHERE {same})");
            clauses.push(Clause::unique(unique, key.clone(), there, "already exists"));
            // Of rows of the file that collide the lowest stays, if nothing else can refuse it.
            if certain && uniques.len() == 1 {
                let columns = key.join(", ");
                session.run(format!("CREATE INDEX ON {staging} ({columns}, {row}); ANALYZE {staging}")).await?;
                let same = equal("e", &key, &key);
                let earlier = format!("EXISTS (SELECT FROM {staging} AS e WHERE {same} AND e.{row} < s.{row})");
                clauses.push(Clause::unique(unique, key, earlier, "stands in the file before"));
            }
        }
        Ok(if clauses.is_empty() { None } else { Some(Self { staging, row, clauses }) })
    }

    /// Takes the refused rows out of a range of row numbers, ascending. Ranges have to be taken in order, all of them.
    ///
    /// # Errors
    /// As [`Refusals::of`].
    pub(super) async fn take(&self, session: &mut Session, low: u64, high: u64) -> Result<Vec<Refused>, sqlx::Error> {
        let mut found = Vec::new();
        for clause in &self.clauses {
            let Self { staging, row, .. } = self;
            let key: Vec<String> = clause.key.iter().map(|column| format!("s.{column}::text")).collect();
            let values = if key.is_empty() { "''".to_owned() } else { format!("concat_ws(', ', {})", key.join(", ")) };
            let statement = format!(
                "DELETE FROM {staging} AS s WHERE s.{row} BETWEEN {low} AND {high} AND {} \
                 RETURNING s.{row}, $1::text || left({values}, {MESSAGE_KEPT}) || $2::text",
                clause.condition
            );
            let rows: Vec<(i64, String)> = sqlx::query_as(AssertSqlSafe(statement))
                .persistent(false)
                .bind(&clause.before)
                .bind(&clause.behind)
                .fetch_all(session.connection())
                .await?;
            found.extend(rows.into_iter().map(|(row, detail)| Refused {
                row: row as u64,
                column: clause.column.clone(),
                detail,
            }));
        }
        found.sort_by_key(|refused| refused.row);
        Ok(found)
    }
}

/// Names come from the catalogue: one that cannot be quoted is none of its.
fn no_name(error: DestinationError) -> sqlx::Error {
    sqlx::Error::Protocol(error.to_string())
}

/// `t.a = s.a AND …`
fn equal(other: &str, columns: &[String], key: &[String]) -> String {
    let pairs = columns.iter().zip(key).map(|(column, key)| format!("{other}.{column} = s.{key}"));
    pairs.collect::<Vec<_>>().join(" AND ")
}

/// `(a, b)=(`, as the database writes it.
fn key_of(columns: &[String]) -> String {
    format!("Key ({})=(", columns.join(", "))
}

impl Clause {
    fn null(table: &str, columns: &[String], key: &[String]) -> Self {
        let (name, column) = (columns.join(", "), key.join(", "));
        Self {
            condition: format!("s.{column} IS NULL"),
            key: Vec::new(),
            before: format!(
                "null value in column \"{name}\" of relation \"{table}\" violates not-null constraint (SQLSTATE 23502)"
            ),
            behind: String::new(),
            column: Some(name),
        }
    }

    fn check(table: &str, constraint: &Constraint) -> Option<Self> {
        let Constraint { name, expression, .. } = constraint;
        Some(Self {
            // A check that is null is met.
            condition: format!("({}) IS FALSE", expression.as_ref()?),
            key: Vec::new(),
            before: format!("new row for relation \"{table}\" violates check constraint \"{name}\" (SQLSTATE 23514)"),
            behind: String::new(),
            column: None,
        })
    }

    fn foreign(table: &str, constraint: &Constraint, key: Vec<String>, columns: &[String]) -> Self {
        let Constraint { name, other, other_name, .. } = constraint;
        let (other, shown) = (other.as_deref().unwrap_or_default(), other_name.as_deref().unwrap_or_default());
        // A key with a null refers to nothing.
        let whole: Vec<String> = key.iter().map(|column| format!("s.{column} IS NOT NULL")).collect();
        let same = equal("r", columns, &key);
        Self {
            condition: format!("{} AND NOT EXISTS (SELECT FROM {other} AS r WHERE {same})", whole.join(" AND ")),
            before: format!(
                "insert or update on table \"{table}\" violates foreign key constraint \"{name}\": {}",
                key_of(&constraint.columns)
            ),
            behind: format!(") is not present in table \"{shown}\". (SQLSTATE 23503)"),
            key,
            column: None,
        }
    }

    fn unique(Unique { name, columns, .. }: &Unique, key: Vec<String>, condition: String, why: &str) -> Self {
        Self {
            condition,
            before: format!("duplicate key value violates unique constraint \"{name}\": {}", key_of(columns)),
            behind: format!(") {why}. (SQLSTATE 23505)"),
            key,
            column: None,
        }
    }
}

async fn table(session: &mut Session, target: &str, staging: &str) -> Result<Option<Table>, sqlx::Error> {
    // Types of triggers: 1 for each row, 2 before the statement's effect.
    let row: Option<(i64, String, bool, bool)> = sqlx::query_as(
        "SELECT c.oid::bigint AS oid, c.relname::text AS name, \
                c.relkind = 'r' \
                  AND NOT EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = c.oid AND NOT g.tgisinternal AND g.tgtype & 3 = 3) \
                  AND NOT EXISTS (SELECT FROM pg_rewrite w WHERE w.ev_class = c.oid AND w.ev_type = '3') \
                  AND NOT EXISTS (SELECT FROM pg_attribute s JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = s.attname \
                                  WHERE s.attrelid = to_regclass($2) AND s.attnum > 0 AND NOT s.attisdropped \
                                    AND ((a.atttypid <> s.atttypid \
                                          AND NOT EXISTS (SELECT FROM pg_cast x WHERE x.castsource = s.atttypid \
                                                            AND x.casttarget = a.atttypid AND x.castmethod = 'b')) \
                                         OR a.atttypmod NOT IN (-1, s.atttypmod))) AS plain, \
                NOT EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = c.oid AND NOT g.tgisinternal) \
                  AND NOT EXISTS (SELECT FROM pg_constraint x WHERE x.conrelid = c.oid AND x.contype = 'x') \
                  AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attgenerated <> '') \
                  AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid \
                                    AND (i.indexprs IS NOT NULL OR i.indpred IS NOT NULL)) AS declared \
         FROM pg_class c WHERE c.oid = to_regclass($1)",
    )
    .bind(target)
    .bind(staging)
    .fetch_optional(session.connection())
    .await?;
    Ok(row.map(|(oid, name, plain, declared)| Table { oid, name, plain, declared }))
}

/// Defaults that are there for every row: literals, clocks, numbers, identifiers.
const NEVER_NULL: &str = r"^(-?[0-9.]+|true|false|now\(\)|CURRENT_[A-Z]+|nextval\('[^']+'::regclass\)|gen_random_uuid\(\)|'[^']*'::[a-z ]+)$";

/// A row of [`constraints`].
type ConstraintRow =
    (String, String, Vec<String>, Option<String>, Option<String>, Option<String>, Vec<String>, bool, bool);

/// Checks and foreign keys, and a constraint of kind `n` for each column that may not be null.
async fn constraints(session: &mut Session, table: i64) -> Result<Vec<Constraint>, sqlx::Error> {
    let rows: Vec<ConstraintRow> = sqlx::query_as(
        "SELECT a.attname::text AS name, 'n' AS kind, ARRAY[a.attname::text] AS columns, \
                CASE WHEN a.attidentity <> '' THEN 'identity' ELSE \
                     (SELECT pg_get_expr(d.adbin, d.adrelid) FROM pg_attrdef d WHERE d.adrelid = a.attrelid AND d.adnum = a.attnum \
                        AND pg_get_expr(d.adbin, d.adrelid) ~ $2) END AS expression, NULL AS other, \
                NULL AS other_name, '{}'::text[] AS other_columns, false AS itself, true AS simple \
         FROM pg_attribute a WHERE a.attrelid = $1::bigint::oid AND a.attnum > 0 AND a.attnotnull AND NOT a.attisdropped \
         UNION ALL \
         SELECT con.conname::text, con.contype::text, \
                ARRAY(SELECT a.attname::text FROM unnest(con.conkey) WITH ORDINALITY AS k (number, place) \
                      JOIN pg_attribute a ON a.attrelid = con.conrelid AND a.attnum = k.number ORDER BY k.place), \
                pg_get_expr(con.conbin, con.conrelid), quote_ident(n.nspname) || '.' || quote_ident(r.relname), r.relname::text, \
                ARRAY(SELECT a.attname::text FROM unnest(con.confkey) WITH ORDINALITY AS k (number, place) \
                      JOIN pg_attribute a ON a.attrelid = con.confrelid AND a.attnum = k.number ORDER BY k.place), \
                coalesce(con.confrelid = con.conrelid, false), \
                con.contype = 'c' OR (con.confmatchtype = 's' AND NOT r.relrowsecurity) \
         FROM pg_constraint con LEFT JOIN pg_class r ON r.oid = con.confrelid LEFT JOIN pg_namespace n ON n.oid = r.relnamespace \
         WHERE con.conrelid = $1::bigint::oid AND con.contype IN ('c', 'f') \
         ORDER BY kind DESC, name",
    )
    .bind(table)
    .bind(NEVER_NULL)
    .fetch_all(session.connection())
    .await?;
    let constraint = |(name, kind, columns, expression, other, other_name, other_columns, itself, simple)| Constraint {
        name,
        kind,
        columns,
        expression,
        other,
        other_name,
        other_columns,
        itself,
        simple,
    };
    Ok(rows.into_iter().map(constraint).collect())
}

/// Unique indexes, those of primary keys and constraints among them.
async fn uniques(session: &mut Session, table: i64) -> Result<Vec<Unique>, sqlx::Error> {
    let rows: Vec<(String, Vec<String>, bool)> = sqlx::query_as(
        "SELECT i.relname::text AS name, \
                ARRAY(SELECT a.attname::text FROM unnest(x.indkey::int2[]) WITH ORDINALITY AS k (number, place) \
                      JOIN pg_attribute a ON a.attrelid = x.indrelid AND a.attnum = k.number \
                      WHERE k.place <= x.indnkeyatts ORDER BY k.place) AS columns, \
                x.indpred IS NULL AND x.indexprs IS NULL AND x.indisvalid AND m.amname = 'btree' \
                  AND pg_get_indexdef(x.indexrelid) NOT LIKE '%NULLS NOT DISTINCT%' \
                  AND NOT EXISTS (SELECT FROM unnest(x.indclass::oid[]) AS o (class) JOIN pg_opclass c ON c.oid = o.class \
                                  WHERE NOT c.opcdefault) \
                  AND NOT EXISTS (SELECT FROM unnest(x.indkey::int2[], x.indcollation::oid[]) AS k (number, compared) \
                                  JOIN pg_attribute a ON a.attrelid = x.indrelid AND a.attnum = k.number \
                                  WHERE k.compared <> 0 AND k.compared <> a.attcollation) AS plain \
         FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_am m ON m.oid = i.relam \
         WHERE x.indrelid = $1::bigint::oid AND x.indisunique ORDER BY name",
    )
    .bind(table)
    .fetch_all(session.connection())
    .await?;
    Ok(rows.into_iter().map(|(name, columns, plain)| Unique { name, columns, plain }).collect())
}
